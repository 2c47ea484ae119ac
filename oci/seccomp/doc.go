// Package seccomp compiles the seccomp section of an OCI config to the classic BPF program that the kernel takes.
//
// It is pure: no cgo, no libseccomp, no system call, nothing at package initialisation. What a profile means is what
// runc 1.5 with libseccomp 2.5 makes of it; the tests compare verdicts with libseccomp's own programs. The program
// itself is laid out differently: per architecture, the numbers are cut into ranges that share a verdict and found by
// binary search, which is what the kernel's cache of always-allowed calls (Linux 5.11) can follow too.
//
// # What a profile means
//
//   - The native architecture is always part of the filter, listed or not. A call of an architecture that is not part
//     of it kills the thread (libseccomp's "bad arch" action), and so does an x32 call where SCMP_ARCH_X32 is not listed.
//   - A rule whose action is the default action is dropped. Names that no architecture knows are skipped.
//   - Several args of one rule are ANDed, but if two of them look at the same argument, each arg becomes a rule of its
//     own. Several rules for one name are ORed. A rule without args beats those with, whatever their order, and the first
//     rule without args beats later ones.
//   - On 32-bit architectures (x32 too) only the low half of arguments and values is compared.
//   - Where an architecture has socketcall(2) or ipc(2), a rule for a call that they multiplex is also a rule for them;
//     that one's first condition is then the selector, and a condition on argument 0 is lost, as it is the selector. The
//     other conditions stay and compare what the multiplexer is given, as in libseccomp; that is rarely what was meant.
//   - Unless the default action is ALLOW, LOG or TRACE, a call whose number is greater than any the profile names (on that
//     architecture) gets ENOSYS, so that a libc falls back to an older call. Call 0 of s390 and s390x is such a call too.
//   - errnoRet is looked at for ERRNO and TRACE and is EPERM if absent.
//
// # Where it differs from runc with libseccomp
//
//   - Rules with different actions and different, overlapping conditions for one name: libseccomp's answer depends on the
//     shape of its tree (2.5.4 can even loop for ever on such a profile). Here the rules are put in the order in which
//     that tree is searched (higher argument first, then equality, then less, then greater; larger values first, for less
//     smaller ones; a rule before one that has more conditions) and the first match wins. The same condition with two
//     actions is an error in both.
//   - libseccomp 2.5.4 misses a match where a rule with less stands beside another comparison by size of the same argument
//     and the upper halves of their values differ, and compares the architecture with call numbers in some filters of
//     profiles that name calls which the architecture does not have. Here such profiles mean what they say.
//   - An errnoRet that does not fit 16 bits is an error and not truncated; an arg index above 5 is one even if the rule
//     would be dropped; SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV without a SCMP_ACT_NOTIFY rule is one here, not in the kernel.
//   - Names of system calls newer than the local libseccomp are known (the tables are newer).
//   - PA-RISC, m68k and SuperH are unknown, as to runc.
package seccomp
