// Package call is the vocabulary of remote system calls: system calls, and
// programs of them, as plain data.
//
// A [Call] says which system call and with which arguments; a [Step] adds
// what to do when it fails. Nothing here performs anything: package rsys
// runs calls in a task, and whoever makes up a program (a container's
// set-up, say) can be tested by looking at the data. The constructors are
// named after the system calls and take the kernel's arguments in the
// kernel's order.
//
// An argument may depend on an earlier step of the same run: its return
// value ([ResultOf]) or a word it had the kernel write into memory
// ([WordOf], [Int32Of]). So a program can open a file and use the
// descriptor without a round trip in between.
package call

import "golang.org/x/sys/unix"

// A Call is one system call. The zero value of each missing argument is 0.
type Call struct {
	Name string // the kernel's name, such as "openat2"
	Nr   int64  // its number on this architecture; negative for a pseudo-call of the server
	Args []Arg  // at most six
}

// Pseudo-calls are carried out by the server itself, with no system call.
// Their numbers are negative so that they can't be taken for one.
const (
	NrExpect  = -1 // see [Expect]
	NrStore32 = -2 // see [Store32]
	NrStore64 = -3 // see [Store64]
)

// Kind says what an [Arg] is.
type Kind uint8

const (
	KindInt    Kind = iota // Int itself
	KindResult             // what step Step returned
	KindIn                 // a pointer to a copy of Data
	KindOut                // a pointer to Int zeroed bytes, kept as the step's output
	KindWord               // eight bytes at Off of the output Arg of step Step
	KindInt32              // four bytes there, sign-extended
	KindOutPtr             // the address of offset Off of the output Arg of step Step
)

// An Arg is one argument of a [Call]. A program has some ten thousand of them, so it is kept small.
type Arg struct {
	Kind  Kind
	Form  Form   // how it is printed
	Index uint8  // KindWord, KindInt32, KindOutPtr: which argument of Step is the output
	Step  int32  // KindResult, KindWord, KindInt32, KindOutPtr: index of an earlier step of the run
	Off   int32  // KindWord, KindInt32, KindOutPtr: offset in the output
	Owner uint32 // if not 0, the table or memory that Int is a handle of; rsys refuses it elsewhere
	Int   int64  // KindInt; KindOut: the size
	Data  string // KindIn
	ptrs  *[]Ptr // KindIn: pointers inside Data; few have any
}

// Ptrs are the pointers inside Data.
func (a *Arg) Ptrs() []Ptr {
	if a.ptrs == nil {
		return nil
	}
	return *a.ptrs
}

// With is a with pointers inside its Data.
func (a Arg) With(ptrs ...Ptr) Arg {
	a.ptrs = &ptrs
	return a
}

// A Ptr is a pointer embedded in an argument's Data: at offset Off stands
// the address of To, which is of KindIn, KindOut or KindOutPtr. It may also be a
// value of eight bytes that is known when the program is laid out, as a KindResult of an earlier part is.
type Ptr struct {
	Off int
	To  Arg
}

// Int is a plain number.
func Int[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](v T) Arg {
	return Arg{Int: int64(v)}
}

// FD is a file descriptor number, or AT_FDCWD.
func FD(fd int) Arg { return Arg{Int: int64(int32(fd)), Form: FormFD} }

// CWD is AT_FDCWD.
var CWD = FD(unix.AT_FDCWD)

// ResultOf is the return value of an earlier step.
func ResultOf(step int) Arg { return Arg{Kind: KindResult, Step: int32(step), Form: FormFD} }

// WordOf is the 64-bit word at off of what the arg-th argument (from 0) of
// an earlier step, one made by [Out], was filled with.
func WordOf(step, arg, off int) Arg {
	return Arg{Kind: KindWord, Step: int32(step), Index: uint8(arg), Off: int32(off)}
}

// Int32Of is [WordOf] for a 32-bit signed word.
func Int32Of(step, arg, off int) Arg {
	return Arg{Kind: KindInt32, Step: int32(step), Index: uint8(arg), Off: int32(off)}
}

// OutPtrOf is the address of offset off of an earlier step's output.
func OutPtrOf(step, arg, off int) Arg {
	return Arg{Kind: KindOutPtr, Step: int32(step), Index: uint8(arg), Off: int32(off)}
}

// Bytes is a pointer to a copy of b.
func Bytes(b []byte) Arg { return Arg{Kind: KindIn, Data: string(b), Form: FormBytes} }

// String is a pointer to s and a terminating zero byte.
func String(s string) Arg { return Arg{Kind: KindIn, Data: s + "\x00", Form: FormString} }

// Strings is a null-terminated array of pointers to strings, as execve's
// argv and envp.
func Strings(list []string) Arg {
	ptrs := make([]Ptr, len(list))
	for i, s := range list {
		ptrs[i] = Ptr{Off: 8 * i, To: String(s)}
	}
	return Bytes(make([]byte, 8*(len(list)+1))).as(FormStrings).With(ptrs...)
}

// Out is a pointer to size zeroed bytes that the call fills.
func Out(size int) Arg { return Arg{Kind: KindOut, Int: int64(size)} }

// Null is the null pointer.
var Null = Arg{}

// as gives a the printed form f.
func (a Arg) as(f Form) Arg {
	a.Form = f
	return a
}

// flags is a number printed as the flags of form f.
func flags[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64](v T, f Form) Arg {
	return Arg{Int: int64(v), Form: f}
}
