//! The network against Linux's own TCP/IP: a TAP device in a namespace is the guest, another
//! namespace is the host and the Internet. Needs root, /dev/net/tun and iproute2.

#![cfg(target_os = "linux")]

mod dns;
mod icmp;
mod lab;
mod loss;
mod many;
mod pcap;
mod policy;
mod ports;
mod tcp;
mod tools;
mod udp;
mod wire;
