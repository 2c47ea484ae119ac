package container

import "testing"

func TestKernelsAreJudgedByTheirRelease(t *testing.T) {
	for release, old := range map[string]bool{
		"4.19.0-26-amd64": true, "5.13.19": true, "5.14.0": false, "5.14.0-427.el9.x86_64": false, "6.1.0-37-cloud-amd64": false, "7.0-rc1": false, "custom": false,
	} {
		if err := checkRelease(release); (err != nil) != old {
			t.Errorf("%s: %v", release, err)
		}
	}
}
