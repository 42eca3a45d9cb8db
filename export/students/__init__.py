"""Knowledge distillation of a bundle's large networks into small ones."""
