//go:build rsys_plain

package container

const bornUnprivileged = false
