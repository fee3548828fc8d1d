/* flood.c - a hostile guest: as many frames as the NIC takes, none of them decent.
 *
 *   flood INTERFACE VICTIM-MAC OUTSIDE-MAC
 *   flood heard INTERFACE SECONDS              how many frames of such a flood come in, from whomever
 *
 * In turn: broadcasts of the smallest and of full size with the NIC's own address, then frames that say they come from the victim, from outside the
 * cluster, from a group address, and runts; now and then an oversized one, of 65535 bytes, which is the most that the interface's MTU is raised to allow.
 * Never reads. Says how many once a second. */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { SECOND = 1000000000, KINDS = 7, OVERSIZED = KINDS - 1, SELDOM = 16, FRAME_MOST = 65535 };
enum { ETHER_TYPE = 0x88b5 }; /* for local experiments */

struct frame {
  size_t size;
  unsigned char bytes[FRAME_MOST];
};

static void parse_mac(const char *text, unsigned char mac[6])
{
  if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6) die("'%s' is no MAC address", text);
}

/* Protocol 0: receives nothing. */
static int open_interface(const char *name, uint16_t protocol)
{
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = (int)if_nametoindex(name)};
  if (fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof to) != 0) die("%s: %s", name, strerror(errno));
  return fd;
}

static void prepare_interface(int fd, const char *name, unsigned char own[6])
{
  struct ifreq request = {0};
  snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
  if (ioctl(fd, SIOCGIFHWADDR, &request) != 0) die("%s: %s", name, strerror(errno));
  memcpy(own, request.ifr_hwaddr.sa_data, 6);
  request.ifr_mtu = FRAME_MOST - ETH_HLEN;
  if (ioctl(fd, SIOCSIFMTU, &request) != 0) die("%s: MTU: %s", name, strerror(errno));
}

static struct frame frame_from(const unsigned char source[6], size_t size)
{
  struct frame f = {.size = size};
  memset(f.bytes, 0xff, 6);
  memcpy(f.bytes + 6, source, 6);
  f.bytes[12] = ETHER_TYPE >> 8;
  f.bytes[13] = ETHER_TYPE & 0xff;
  return f;
}

static int heard(const char *interface, uint64_t seconds)
{
  int fd = open_interface(interface, ETHER_TYPE);
  uint64_t count = 0, end = now_ns() + seconds * SECOND, now;
  char byte;
  while ((now = now_ns()) < end) {
    if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, (int)((end - now) / 1000000) + 1) > 0 && recv(fd, &byte, 1, MSG_DONTWAIT) > 0) count++;
  }
  say("flood heard=%llu", (unsigned long long)count);
  return 0;
}

int main(int argc, char **argv)
{
  static const unsigned char group[6] = {1, 0, 0x5e, 0, 0, 1};
  unsigned char own[6], victim[6], outside[6];
  if (argc != 4) die("usage: flood INTERFACE VICTIM-MAC OUTSIDE-MAC | flood heard INTERFACE SECONDS");
  if (!strcmp(argv[1], "heard")) return heard(argv[2], parse_number(argv[3], "seconds"));
  int fd = open_interface(argv[1], 0);
  prepare_interface(fd, argv[1], own);
  parse_mac(argv[2], victim);
  parse_mac(argv[3], outside);
  static struct frame kinds[KINDS];
  kinds[0] = frame_from(own, ETH_ZLEN);
  kinds[1] = frame_from(own, ETH_FRAME_LEN);
  kinds[2] = frame_from(victim, ETH_ZLEN);
  kinds[3] = frame_from(outside, ETH_ZLEN);
  kinds[4] = frame_from(group, ETH_ZLEN);
  kinds[5] = frame_from(own, ETH_HLEN);
  kinds[OVERSIZED] = frame_from(own, FRAME_MOST);
  uint64_t sent = 0, said = now_ns();
  for (uint64_t turn = 0, kind = 0;; kind = (kind + 1) % KINDS) {
    if (kind == OVERSIZED && turn++ % SELDOM) continue;
    if (send(fd, kinds[kind].bytes, kinds[kind].size, 0) > 0)
      sent++;
    else if (errno == ENOBUFS || errno == EAGAIN)
      poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 10);
    else
      die("send: %s", strerror(errno));
    if (now_ns() - said < SECOND) continue;
    said = now_ns();
    say("flood sent=%llu", (unsigned long long)sent);
  }
}
