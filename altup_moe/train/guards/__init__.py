"""What stands between bad numbers and a run: norms that overflow, loss spikes, routers that collapse, ids that are no
tokens. All ranks decide alike. A guard that does not fire changes nothing."""
