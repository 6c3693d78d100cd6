"""Vocoders: Vocos and HiFi-GAN."""
