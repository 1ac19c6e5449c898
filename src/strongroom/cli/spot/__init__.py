"""`strongroom spot`: training on spot instances, and what a mirror saves there."""
