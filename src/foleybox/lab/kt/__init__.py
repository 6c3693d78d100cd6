"""KT's systems: self-attention GANs with contrastive losses."""
