/* nonce.c - datagrams for the outside that show whether a past which was seen has been undone.
 *
 *   nonce ADDRESS:PORT RATE         numbers 0, 1, 2, … at RATE a second (0: as fast as possible)
 *
 * Each number gets a nonce, drawn at the moment of sending from the kernel's random numbers and the clock: a guest that is put back and sends
 * the same number again draws another one. Each datagram carries the nonces of the HISTORY newest numbers as well. So whoever has seen two
 * different nonces of one number has seen something that was undone, also if the second datagram of that very number never came.
 *
 * Datagram: 8 bytes "vcftnonc", 8 bytes number n, then the nonces of n, n - 1, … (HISTORY of them or n + 1), 8 bytes each; little-endian.
 * Prints once a second `nonce sent N`. */
#include "guest.h"
#include "udp.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HISTORY = 128 };

static uint64_t draw(void)
{
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) random = 0; /* early after boot: the clock has to do */
  return random ^ now_ns() * 0x9e3779b97f4a7c15ull;
}

static size_t compose(uint64_t *datagram, const uint64_t *nonces, uint64_t number)
{
  size_t n = number < HISTORY ? (size_t)number + 1 : HISTORY;
  memcpy(datagram, "vcftnonc", 8);
  datagram[1] = htole64(number);
  for (size_t i = 0; i < n; i++) datagram[2 + i] = htole64(nonces[(number - i) % HISTORY]);
  return (2 + n) * 8;
}

static void send_one(int fd, const uint64_t *datagram, size_t size)
{
  while (send(fd, datagram, size, 0) < 0) {
    if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EINTR && errno != EAGAIN) die("nonce: %s", strerror(errno));
    usleep(1000);
  }
}

int main(int argc, char **argv)
{
  static uint64_t nonces[HISTORY], datagram[2 + HISTORY];
  if (argc != 3) die("usage: nonce ADDRESS:PORT RATE");
  struct pace pace = {.rate = parse_number(argv[2], "RATE")};
  int fd = udp_connect(argv[1]);
  uint64_t report = now_ns() + 1000000000;
  for (uint64_t number = 0;; number++) {
    pace_wait(&pace);
    nonces[number % HISTORY] = draw();
    send_one(fd, datagram, compose(datagram, nonces, number));
    if (now_ns() < report) continue;
    report = now_ns() + 1000000000;
    say("nonce sent %" PRIu64, number + 1);
  }
}
