"""The all-reduces of a ResNet-50 step on simulated clusters."""
