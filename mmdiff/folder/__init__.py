"""A folder of photos, with masks and captions where there are any, checked and turned into training data."""
