"""The served models as MLflow models from code: Python files and safetensors, no pickle."""
