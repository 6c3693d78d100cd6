"""What all systems share: clips, cache, mel features, augmentation, run folders, the training-loop toolkit."""
