"""Work beside communication: started collectives, deferred work, two-batch turns. Experts and dense layers use them."""
