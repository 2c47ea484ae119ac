package seccomp

import "testing"

func TestNamesAreFoundAndOthersAreNot(t *testing.T) {
	prev := ""
	for i := range nameCount {
		n := nameText[nameStart[i]:nameStart[i+1]]
		if n <= prev {
			t.Errorf("%q after %q", n, prev)
		}
		prev = n
		if j, ok := lookup(n); !ok || j != i {
			t.Errorf("%s: %d, %v, want %d", n, j, ok, i)
		}
		if _, ok := lookup(n + "~"); ok {
			t.Errorf("%s~ is found", n)
		}
	}
	for _, n := range []string{"", "a", "zzz", "rea", "SYS_read"} {
		if _, ok := lookup(n); ok {
			t.Errorf("%q is found", n)
		}
	}
}

// Numbers that one knows by heart, to see that columns are not swapped.
func TestWellKnownNumbers(t *testing.T) {
	for _, tt := range []struct {
		abi  abi
		name string
		want uint32
	}{
		{abiX8664, "execve", 59}, {abiX86, "execve", 11}, {abiX32, "execve", x32Bit + 520}, {abiX32, "read", x32Bit},
		{abiARM64, "execve", 221}, {abiARM, "execve", 11}, {abiARM, "set_tls", 0xf0005}, {abiARM, "breakpoint", 0xf0001},
		{abiRISCV64, "riscv_flush_icache", 259}, {abiLoong64, "execve", 221}, {abiPPC64, "execve", 11}, {abiPPC, "execve", 11},
		{abiS390X, "execve", 11}, {abiS390, "execve", 11}, {abiMIPSO32, "execve", 4011}, {abiMIPSN64, "execve", 5057}, {abiMIPSN32, "execve", 6057},
		{abiX8664, "clone3", 435}, {abiMIPSN32, "mseal", 6462}, {abiS390, "mseal", 462}, {abiX32, "mseal", x32Bit + 462},
		{abiARM64, "open", noNumber}, {abiX8664, "socketcall", noNumber}, {abiX8664, "set_tls", noNumber},
	} {
		i, ok := lookup(tt.name)
		if !ok {
			t.Errorf("%s is unknown", tt.name)
		} else if got := tt.abi.number(i); got != tt.want {
			t.Errorf("ABI %d, %s: %d, want %d", tt.abi, tt.name, got, tt.want)
		}
	}
}
