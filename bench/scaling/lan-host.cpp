#include "lan-host.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

namespace dllama {

namespace {

int check(int result, const char* step) {
    if (result < 0) throw std::system_error(errno, std::generic_category(), step);
    return result;
}

ifreq request(const char* interface) {
    ifreq r{};
    std::strncpy(r.ifr_name, interface, IFNAMSIZ - 1);
    return r;
}

void setUp(int socket, const char* interface) {
    ifreq r = request(interface);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    check(ioctl(socket, SIOCSIFFLAGS, &r), "setting an interface up");
}

void setAddress(int socket, unsigned long what, const char* step, in_addr_t address) {
    ifreq r = request("eth0");
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = htonl(address);
    std::memcpy(&r.ifr_addr, &in, sizeof in);
    check(ioctl(socket, what, &r), step);
}

Fd makeTap() {
    Fd tap(check(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "opening /dev/net/tun"));
    ifreq r = request("eth0");
    r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    check(ioctl(tap.get(), TUNSETIFF, &r), "making a TAP device");
    check(ioctl(tap.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4), "TUNSETOFFLOAD");
    return tap;
}

/// In the namespace that the calling thread is in.
void configure(int number) {
    const Fd socket(check(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "opening a socket"));
    ifreq mac = request("eth0");
    mac.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    const char address[6] = {2, 0, 0, 0, 0, static_cast<char>(number)};
    std::memcpy(mac.ifr_hwaddr.sa_data, address, sizeof address);
    check(ioctl(socket.get(), SIOCSIFHWADDR, &mac), "setting a hardware address");
    setAddress(socket.get(), SIOCSIFADDR, "setting an address", 0x0a4d0000u + static_cast<in_addr_t>(number));
    setAddress(socket.get(), SIOCSIFNETMASK, "setting a netmask", 0xffffff00u);
    setUp(socket.get(), "lo");
    setUp(socket.get(), "eth0");
    // What machines at home use, whatever this one prefers. Where it may not be set things are as they are.
    std::ofstream("/proc/sys/net/ipv4/tcp_congestion_control") << "cubic";
}

}  // namespace

Fd::~Fd() {
    if (fd_ >= 0) close(fd_);
}

LanHost makeLanHost(int number) {
    const Fd home(check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "opening /proc/self/ns/net"));
    check(unshare(CLONE_NEWNET), "making a network namespace");
    try {
        LanHost host;
        host.network = Fd(check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "opening /proc/self/ns/net"));
        host.cable = makeTap();
        configure(number);
        check(setns(home.get(), CLONE_NEWNET), "leaving a network namespace");
        return host;
    } catch (...) {
        setns(home.get(), CLONE_NEWNET);
        throw;
    }
}

}  // namespace dllama
