"""Every phase of a recipe on a handful of images, before hours are spent."""
