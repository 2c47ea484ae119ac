package cri

import (
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestAPodRuns(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	if got := c.Sh("hostname"); got != p.Config.Hostname {
		t.Errorf("host name %q", got)
	}
}
