// Policies enforces NetworkPolicies on one node: sigs.k8s.io/kube-network-policies judges the first packet of every
// connection.
//
// Its own program wants to run in a pod, and lays rules for nftables' queue, which not every kernel has; here iptables
// brings the packets, by the rules of tandem_cluster/network.py. So its controller complains in the log that it cannot
// lay its own, and does everything else.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "who to be to the API server")
	node := flag.String("hostname-override", "", "the node's name")
	queue := flag.Int("nfqueue-id", 100, "where iptables puts the packets")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	must(err)
	client, err := kubernetes.NewForConfig(config)
	must(err)
	cluster := informers.NewSharedInformerFactory(client, 0)
	core := cluster.Core().V1()
	controller, err := networkpolicy.NewController(
		client,
		cluster.Networking().V1().NetworkPolicies(),
		core.Namespaces(),
		core.Pods(),
		nil, nil, nil, nil,
		networkpolicy.Config{NodeName: *node, QueueID: *queue},
	)
	must(err)
	cluster.Start(ctx.Done())
	must(controller.Run(ctx))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
