"""What a piece of Python code imports, where the code itself is run by nothing that is quick."""

import ast
import importlib


def require_imports(code: str) -> None:
    """Every module that `code` imports, and every name that it imports from one, must be there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
