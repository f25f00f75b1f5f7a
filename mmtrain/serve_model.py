"""The file that MLflow runs to load a registered bundle ("models from code"); see the registry."""

from mmtrain.model_registry import serve

serve()
