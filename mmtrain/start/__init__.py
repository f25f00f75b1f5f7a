"""What a run starts from: ViT checkpoints, runs, bundles."""
