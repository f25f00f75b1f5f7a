"""The file that MLflow runs to load a registered bundle ("models from code"); see there."""

from mmtrain.registry.served_model import serve

serve()
