package seccomp

// An abi is one of the kernel's tables of system call numbers.
type abi uint8

// armPrivate is where arch/arm has its private calls (__ARM_NR_BASE in its asm/unistd.h).
const armPrivate = 0x0f0000

// noNumber is no system call's number on any ABI.
const noNumber = ^uint32(0)

// lookup finds a name in the tables.
func lookup(name string) (index int, ok bool) {
	lo, hi := 0, nameCount
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		s := nameText[nameStart[mid]:nameStart[mid+1]]
		switch {
		case s < name:
			lo = mid + 1
		case s > name:
			hi = mid
		default:
			return mid, true
		}
	}
	return 0, false
}

// number is the system call number of name index on a, or noNumber.
func (a abi) number(index int) uint32 {
	n := numbers[a][index]
	switch {
	case n == -1:
		return noNumber
	case n < 0:
		return armPrivate + uint32(-2-n)
	case a == abiX32:
		return x32Bit | uint32(n)
	}
	return uint32(n)
}
