/* udpseq.c - a stream of numbered UDP datagrams, and a receiver that knows which numbers it has seen.
 *
 *   udpseq send ADDRESS:PORT RATE [SIZE] [COUNT]   numbers 0, 1, 2, … at RATE a second (0: as fast as possible), SIZE bytes
 *                                                  each (default 64), COUNT of them (default 0: for ever). Number 0 goes out
 *                                                  when a receiver has answered a question: none is lost for want of a receiver
 *   udpseq recv PORT [QUIET]                       counts; prints its state once a second (not with QUIET) and on a gap or double
 *   udpseq ask ADDRESS:PORT                        asks a receiver for its state and prints it; status 1 without an answer in 5 s
 *
 * The state is one line:
 *   udpseq recv next=N seen=S missing=M double=D late=L bad=B dropped=K
 *     next     highest number seen + 1          missing  numbers below next that never came
 *     seen     distinct numbers                 double   datagrams whose number had been seen before
 *     late     came after a higher number       bad      wrong content      dropped  lost in the receiver's own socket buffer
 * A lossless network gives seen = next and zero everywhere else. The sender prints `udpseq sent N` once a second.
 *
 * Datagram: 8 bytes "vcftseq1", 8 bytes number (little-endian), the rest a pattern that follows from the number.
 * Question: 8 bytes "vcftask?" ; the answer is the state line. The receiver's socket gives no answer to anything else. */
#define _GNU_SOURCE
#include "guest.h"
#include "udp.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 16, SIZE_MAX_UDP = 1472, NUMBERS_MAX = 1 << 27 };
static const char MAGIC[] = "vcftseq1", QUESTION[] = "vcftask?";

struct receiver {
  uint8_t *seen_bits; /* NUMBERS_MAX bits, touched only as far as numbers go */
  uint64_t next, seen, doubles, late, bad;
  uint32_t dropped;
};

static void fill(uint8_t *datagram, size_t size, uint64_t number)
{
  uint64_t wire = htole64(number);
  memcpy(datagram, MAGIC, 8);
  memcpy(datagram + 8, &wire, 8);
  for (size_t i = HEADER; i < size; i++) datagram[i] = (uint8_t)(number * 31 + i);
}

static bool parse(const uint8_t *datagram, size_t size, uint64_t *number)
{
  uint64_t wire;
  if (size < HEADER || memcmp(datagram, MAGIC, 8) != 0) return false;
  memcpy(&wire, datagram + 8, 8);
  *number = le64toh(wire);
  for (size_t i = HEADER; i < size; i++)
    if (datagram[i] != (uint8_t)(*number * 31 + i)) return false;
  return *number < NUMBERS_MAX;
}

/* A refused send (no receiver yet: ICMP; or no buffer) is repeated: a number counts as sent when the kernel took it. */
static void send_one(int fd, const uint8_t *datagram, size_t size)
{
  while (send(fd, datagram, size, 0) < 0) {
    if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EINTR && errno != EAGAIN) die("udpseq send: %s", strerror(errno));
    usleep(1000);
  }
}

/* One question, one answer within the socket's time-out. Returns its length, 0 without an answer. */
static size_t ask(int fd, char *answer, size_t size)
{
  if (send(fd, QUESTION, 8, 0) < 0) usleep(100000); /* nobody listens there yet */
  ssize_t n = recv(fd, answer, size, 0);
  return n > 0 ? (size_t)n : 0;
}

static int run_send(const char *to, uint64_t rate, size_t size, uint64_t count)
{
  uint8_t datagram[SIZE_MAX_UDP];
  char state[256];
  struct pace pace = {.rate = rate};
  int fd = udp_connect(to);
  udp_timeout(fd, 200);
  while (ask(fd, state, sizeof state) == 0)
    ;
  uint64_t report = now_ns() + 1000000000;
  for (uint64_t number = 0; count == 0 || number < count; number++) {
    pace_wait(&pace);
    fill(datagram, size, number);
    send_one(fd, datagram, size);
    if (now_ns() < report) continue;
    report = now_ns() + 1000000000;
    say("udpseq sent %" PRIu64, number + 1);
  }
  say("udpseq sent %" PRIu64 " end", count);
  return 0;
}

static void state_line(const struct receiver *r, char line[static 256])
{
  snprintf(line, 256,
           "udpseq recv next=%" PRIu64 " seen=%" PRIu64 " missing=%" PRIu64 " double=%" PRIu64 " late=%" PRIu64 " bad=%" PRIu64
           " dropped=%" PRIu32,
           r->next, r->seen, r->next - r->seen, r->doubles, r->late, r->bad, r->dropped);
}

/* Returns whether the number came as a lossless, ordered network brings it. */
static bool note(struct receiver *r, uint64_t number)
{
  uint8_t *byte = &r->seen_bits[number / 8], bit = (uint8_t)(1u << (number % 8));
  bool in_order = number == r->next;
  if (*byte & bit) {
    r->doubles++;
    return false;
  }
  *byte |= bit;
  r->seen++;
  if (number < r->next) r->late++;
  else r->next = number + 1;
  return in_order;
}

/* Receives one datagram with the kernel's count of those it had to drop (SO_RXQ_OVFL). */
static ssize_t receive(int fd, uint8_t *buffer, size_t size, struct sockaddr_in *from, uint32_t *dropped)
{
  char control[CMSG_SPACE(sizeof(uint32_t))];
  struct iovec data = {.iov_base = buffer, .iov_len = size};
  struct msghdr m = {.msg_name = from, .msg_namelen = sizeof *from, .msg_iov = &data, .msg_iovlen = 1,
                     .msg_control = control, .msg_controllen = sizeof control};
  ssize_t n = recvmsg(fd, &m, 0);
  if (n < 0) return n;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c))
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) memcpy(dropped, CMSG_DATA(c), sizeof *dropped);
  return n;
}

static void answer(const struct receiver *r, int fd, const struct sockaddr_in *to)
{
  char line[256];
  state_line(r, line);
  sendto(fd, line, strlen(line), 0, (const struct sockaddr *)to, sizeof *to);
}

/* Returns whether something happened that a lossless network does not do. */
static bool receive_one(struct receiver *r, int fd)
{
  uint8_t datagram[2048];
  struct sockaddr_in from;
  uint64_t number;
  ssize_t n = receive(fd, datagram, sizeof datagram, &from, &r->dropped);
  if (n < 0) return false; /* the time-out: only the report is due */
  if (n == 8 && memcmp(datagram, QUESTION, 8) == 0) {
    answer(r, fd, &from);
    return false;
  }
  if (parse(datagram, (size_t)n, &number)) return !note(r, number);
  r->bad++;
  return true;
}

static int run_recv(const char *port, bool quiet)
{
  struct receiver r = {.seen_bits = calloc(NUMBERS_MAX / 8, 1)};
  int on = 1, fd = udp_listen(port);
  char line[256];
  if (r.seen_bits == NULL) die("udpseq recv: no memory");
  setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
  udp_timeout(fd, 200);
  say("udpseq recv ready port=%s", port);
  uint64_t report = now_ns() + 1000000000, odd_report = 0;
  for (;;) {
    bool odd = receive_one(&r, fd);
    bool due = !quiet && now_ns() >= report;
    if (!due && !(odd && now_ns() >= odd_report)) continue;
    report = now_ns() + 1000000000;
    odd_report = now_ns() + 100000000; /* a burst of odd datagrams is a few lines, not thousands */
    state_line(&r, line);
    say("%s", line);
  }
}

static int run_ask(const char *to)
{
  char line[256];
  int fd = udp_connect(to);
  udp_timeout(fd, 500);
  for (int attempt = 0; attempt < 10; attempt++) {
    size_t n = ask(fd, line, sizeof line - 1);
    if (n == 0) continue;
    line[n] = '\0';
    say("%s", line);
    return 0;
  }
  die("udpseq ask: no answer from %s", to);
}

int main(int argc, char **argv)
{
  if (argc >= 4 && argc <= 6 && strcmp(argv[1], "send") == 0) {
    uint64_t size = argc >= 5 ? parse_number(argv[4], "SIZE") : 64;
    if (size < HEADER || size > SIZE_MAX_UDP) die("SIZE must be within %d..%d", HEADER, SIZE_MAX_UDP);
    return run_send(argv[2], parse_number(argv[3], "RATE"), size, argc == 6 ? parse_number(argv[5], "COUNT") : 0);
  }
  if ((argc == 3 || argc == 4) && strcmp(argv[1], "recv") == 0) return run_recv(argv[2], argc == 4);
  if (argc == 3 && strcmp(argv[1], "ask") == 0) return run_ask(argv[2]);
  die("usage: udpseq send ADDRESS:PORT RATE [SIZE] [COUNT] | recv PORT [QUIET] | ask ADDRESS:PORT");
}
