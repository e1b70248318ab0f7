"""The command line: options in, a config dataclass to the library, its reports shown."""
