"""The file that MLflow runs to load a registered bundle ("models from code")."""

from mmtrain.registry.served_model import ServedModel
from mmtrain.store.pyfunc import serve

serve(ServedModel)
