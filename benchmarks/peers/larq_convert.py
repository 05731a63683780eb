"""Writes the models that Larq Compute Engine runs, in the environment of requirements-larq.txt: FOLDER/{name}.tflite.

A 3x3 convolution is Larq's QuantConv2D with the border +1 (its fastest) and a batch norm; "e18" is larq-zoo's
BinaryResNetE18. Weights are random.
"""

import sys
from pathlib import Path

import larq
import larq_compute_engine
import larq_zoo
import tensorflow as tf

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))


def layer(channels: int, size: int) -> tf.keras.Model:
    """Sign, binary 3x3 convolution, batch norm."""
    x = tf.keras.layers.Input((size, size, channels), batch_size=1)
    y = larq.layers.QuantConv2D(
        *(channels, 3),
        padding="same",
        pad_values=1,
        use_bias=False,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",
    )(x)
    return tf.keras.Model(x, tf.keras.layers.BatchNormalization()(y))


def main(folder: Path) -> None:
    """Convert everything that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {f"{channels}@{size}": lambda c=channels, s=size: layer(c, s) for channels, size in LAYERS}
    models["e18"] = lambda: larq_zoo.literature.BinaryResNetE18(weights=None)
    for name, make in models.items():
        path = folder / f"{name}.tflite"
        if not path.exists():
            path.write_bytes(larq_compute_engine.convert_keras_model(make()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
