"""Real data: sources, splits, sampling, preprocessing, augmentation."""
