"""The training of generators and segmenters: settings, samples, steps and stages of Sec. III."""
