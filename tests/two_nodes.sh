#!/bin/bash
# First process of `tests.two_nodes`, in namespaces of its own: nodes n0 and n1 and a host ctl, joined by a bridge.
# Usage: two_nodes.sh DIRECTORY. Everything here is gone when this process ends, also when it is killed.
set -eu
dir=$1
mount -t tmpfs none /run
mkdir /run/netns /run/uts
mount --bind "$dir/hosts" /etc/hosts
hostname ctl
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
for i in 0 1; do
    touch "/run/netns/n$i" "/run/uts/n$i"
    unshare --net="/run/netns/n$i" --uts="/run/uts/n$i" hostname "n$i"
    ip link add "n$i" type veth peer name eth0 netns "n$i"
    ip link set "n$i" master br0 up
    nsenter --net="/run/netns/n$i" sh -c "ip link set lo up; ip addr add 10.77.0.1$i/24 dev eth0; ip link set eth0 up"
done
touch "$dir/ready"
while :; do  # bash takes up processes whose parents have ended
    sleep 3600 &
    wait $! || true
done
