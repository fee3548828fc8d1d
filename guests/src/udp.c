/* udp.c - sockets for udpseq and pinger (see udp.h). */
#include "udp.h"

#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

int udp_socket(void)
{
  int size = 8 << 20;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket: %s", strerror(errno));
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) != 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size); /* not root: what the system allows */
  return fd;
}

static in_port_t parse_port(const char *text)
{
  uint64_t port = parse_number(text, "PORT");
  if (port == 0 || port > 65535) die("PORT: %s is not within 1..65535", text);
  return htons((uint16_t)port);
}

int udp_listen(const char *port)
{
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = parse_port(port)};
  int fd = udp_socket();
  if (bind(fd, (struct sockaddr *)&any, sizeof any) != 0) die("bind port %s: %s", port, strerror(errno));
  return fd;
}

int udp_connect(const char *address_port)
{
  char address[64];
  const char *colon = strrchr(address_port, ':');
  if (colon == NULL || (size_t)(colon - address_port) >= sizeof address) die("'%s' is not ADDRESS:PORT", address_port);
  snprintf(address, sizeof address, "%.*s", (int)(colon - address_port), address_port);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = parse_port(colon + 1)};
  if (inet_pton(AF_INET, address, &to.sin_addr) != 1) die("'%s' is not an IPv4 address", address);
  int fd = udp_socket();
  if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) die("connect %s: %s", address_port, strerror(errno));
  return fd;
}

void udp_timeout(int fd, unsigned milliseconds)
{
  struct timeval t = {.tv_sec = milliseconds / 1000, .tv_usec = (suseconds_t)(milliseconds % 1000) * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}
