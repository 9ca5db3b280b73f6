"""Training: recipes, augmentation and the loop. The one part of kit/ that needs torch to be of use."""
