package call

// A Form says how an argument is printed; it has no part in running it.
type Form uint8

const (
	FormInt Form = iota
	FormHidden
	FormFD
	FormHex
	FormOctal
	FormErrno
	FormString
	FormStrings
	FormBytes
	FormText
	FormNamed // the name is in Data
	FormUint32s
	FormMode
	FormDev
	FormOpen
	FormOpenHow
	FormCloseRange
	FormAt
	FormOpenTree
	FormMoveMount
	FormFsopen
	FormFsconfig
	FormFsmount
	FormMountAttr
	FormMountSetattr
	FormMS
	FormUmount
	FormClone
	FormPrctl
	FormCaps
	FormRlimit
	FormRlimitValue
	FormSockFprog
	FormKeyctl
	FormCap
	FormDup
	FormBits
	FormSchedAttr
	FormIoprioWho
	FormIoprio
	FormPersonality
	FormMempolicy
	FormLoop
)
