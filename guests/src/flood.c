/* flood.c - a hostile guest: as many frames as the NIC takes, none of them decent.
 *
 *   flood INTERFACE VICTIM-MAC OUTSIDE-MAC
 *
 * In turn: broadcasts of the smallest and of full size with the NIC's own address, then frames that say they come from the victim, from outside the
 * cluster, from a group address, and runts. Never reads. Says how many once a second. */
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

enum { SECOND = 1000000000, KINDS = 6 };

struct frame {
  size_t size;
  unsigned char bytes[ETH_FRAME_LEN];
};

static void parse_mac(const char *text, unsigned char mac[6])
{
  if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6) die("'%s' is no MAC address", text);
}

static int open_interface(const char *name, unsigned char own[6])
{
  struct ifreq request = {0};
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* protocol 0: receives nothing */
  snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
  if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &request) != 0) die("%s: %s", name, strerror(errno));
  memcpy(own, request.ifr_hwaddr.sa_data, 6);
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(name)};
  if (bind(fd, (struct sockaddr *)&to, sizeof to) != 0) die("%s: %s", name, strerror(errno));
  return fd;
}

static struct frame frame_from(const unsigned char source[6], size_t size)
{
  struct frame f = {.size = size};
  memset(f.bytes, 0xff, 6);
  memcpy(f.bytes + 6, source, 6);
  f.bytes[12] = 0x88; /* local experiments */
  f.bytes[13] = 0xb5;
  return f;
}

int main(int argc, char **argv)
{
  static const unsigned char group[6] = {1, 0, 0x5e, 0, 0, 1};
  unsigned char own[6], victim[6], outside[6];
  if (argc != 4) die("usage: flood INTERFACE VICTIM-MAC OUTSIDE-MAC");
  int fd = open_interface(argv[1], own);
  parse_mac(argv[2], victim);
  parse_mac(argv[3], outside);
  struct frame kinds[KINDS] = {frame_from(own, ETH_ZLEN), frame_from(own, ETH_FRAME_LEN), frame_from(victim, ETH_ZLEN), frame_from(outside, ETH_ZLEN),
                               frame_from(group, ETH_ZLEN), frame_from(own, ETH_HLEN)};
  uint64_t sent = 0, said = now_ns();
  for (unsigned kind = 0;; kind = (kind + 1) % KINDS) {
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
