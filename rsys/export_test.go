package rsys

// Children is the number of processes that are not reaped.
func Children() int { return int(children.Load()) }
