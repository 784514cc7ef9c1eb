// CoreDNS with only the plugins that the cluster's Corefile names: the full set compiles the SDKs of three clouds.
package main

import (
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func main() {
	// A query passes through them in this order: template answers what is not in a zone of kubernetes.
	dnsserver.Directives = []string{"ready", "errors", "kubernetes", "template"}
	coremain.Run()
}
