"""Our own system: an autoencoder of mels, and a causal transformer with a flow head over its latents."""
