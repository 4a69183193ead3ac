"""Images decoded once and kept on disk or in memory, as they are before augmentation."""
