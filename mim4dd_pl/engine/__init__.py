"""Networks as functions of one vector, their derivatives, and the unroll of an inner loop."""
