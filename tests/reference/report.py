"""The course report's two models and losses, written out from its table as its authors would have done."""

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F


def init_weights(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(m.weight, nonlinearity="linear")
        nn.init.constant_(m.bias, 0)
    elif isinstance(m, nn.BatchNorm2d):
        nn.init.constant_(m.weight, 1)
        nn.init.constant_(m.bias, 0)


class ReportAE(nn.Module):
    def __init__(self, base=64, latent_dim=1024):
        super().__init__()
        channels = [base, 2 * base, 4 * base, 8 * base, 16 * base]
        encoder, decoder = [], []
        for before, after in pairwise([3, *channels]):
            encoder += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), nn.BatchNorm2d(after), nn.Mish()]
        for before, after in pairwise([latent_dim, *channels[::-1]]):
            decoder += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), nn.BatchNorm2d(after)]
            decoder += [nn.Mish()]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(base, 3, kernel_size=3, stride=1, padding=1), nn.Tanh())
        self.apply(init_weights)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class ReportVAE(ReportAE):
    def __init__(self, base=64, latent_dim=1024):
        super().__init__(base, latent_dim)
        self.encoder.append(nn.Conv2d(base * 16, latent_dim * 2, kernel_size=3, stride=1, padding=1))
        self.apply(init_weights)

    def forward(self, x):
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mu)


def ae_loss(model, x, noise=None):
    return F.mse_loss(model(x), x)


def vae_loss(model, x, noise, beta=2.5e-5):
    mu, log_var = torch.chunk(model.encoder(x), 2, dim=1)
    z = mu + noise * torch.exp(0.5 * log_var)
    kl = -0.5 * torch.mean(1 + log_var - mu.pow(2) - log_var.exp())
    return F.mse_loss(model.decoder(z), x) + beta * kl


def optimizer_for(model):
    return torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.5, 0.999))
