//! A proxy between two parts of Everstep that a test can make misbehave.
