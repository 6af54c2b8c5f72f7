"""The paper's optimizer."""

from __future__ import annotations

import keras
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` in one TensorFlow operation per variable, which needs no temporary copies.

    The same formula: its results differ from Keras's by float32's rounding.

    Args:
        learning_rate: Number or schedule.
        epsilon: 1e-8, as released (Keras: 1e-7).
    """

    def __init__(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule, epsilon: float = 1e-8):
        super().__init__(learning_rate, epsilon=epsilon, name="adam")

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Keras hook."""
        step = tf.cast(self.iterations + 1, tf.float32)
        number = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[number].value.handle,
            v=self._velocities[number].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
