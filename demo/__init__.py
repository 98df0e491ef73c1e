"""The demo: real models served on 127.0.0.1, and the home folder that runs them."""
