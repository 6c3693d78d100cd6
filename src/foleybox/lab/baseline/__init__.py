"""The official baseline: VQ-VAE and PixelSNAIL."""
