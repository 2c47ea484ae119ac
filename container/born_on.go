//go:build !rsys_plain

package container

// bornUnprivileged says that what is exec'd in a container is born unprivileged. The build
// without it, with the tag rsys_plain, is there for the test that tells the two apart.
const bornUnprivileged = true
