"""Sweeps: which factor, which init, which rate, for one's own task, with statistics that say no more than they show."""
