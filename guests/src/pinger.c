/* pinger.c - round trips by UDP.
 *
 *   pinger serve PORT                              sends every datagram back
 *   pinger ADDRESS:PORT [INTERVAL_MS] [COUNT]      one question every INTERVAL_MS (default 10), COUNT of them (default 0: for ever)
 *
 * One question is under way at a time; an answer that takes longer than 2 s counts as lost. Prints after every 100 answers, and at the end
 *   pinger n=N lost=L median_us=… p99_us=… max_us=…        (of the answers since the line before) */
#include "guest.h"
#include "udp.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WINDOW = 100, DATAGRAM = 64 };

struct window {
  uint64_t rtt_ns[WINDOW];
  size_t n, lost;
};

static int by_value(const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static void report(struct window *w)
{
  if (w->n == 0 && w->lost == 0) return;
  uint64_t *t = w->rtt_ns;
  qsort(t, w->n, sizeof *t, by_value);
  if (w->n == 0) say("pinger n=0 lost=%zu", w->lost);
  else
    say("pinger n=%zu lost=%zu median_us=%" PRIu64 " p99_us=%" PRIu64 " max_us=%" PRIu64, w->n, w->lost, t[w->n / 2] / 1000,
        t[(w->n * 99 + 99) / 100 - 1] / 1000, t[w->n - 1] / 1000);
  w->n = w->lost = 0;
}

/* Waits for the answer to question `number`; answers to earlier questions are passed over. */
static bool wait_answer(int fd, uint64_t number)
{
  uint64_t datagram[DATAGRAM / 8];
  for (;;) {
    ssize_t n = recv(fd, datagram, sizeof datagram, 0);
    if (n < 0) return false;
    if (n == DATAGRAM && datagram[0] == number) return true;
  }
}

static bool ping(int fd, uint64_t number, uint64_t *rtt_ns)
{
  uint64_t datagram[DATAGRAM / 8] = {number};
  uint64_t start = now_ns();
  if (send(fd, datagram, sizeof datagram, 0) < 0) {
    usleep(100000); /* nobody listens there yet */
    return false;
  }
  if (!wait_answer(fd, number)) return false;
  *rtt_ns = now_ns() - start;
  return true;
}

static int run_client(const char *to, uint64_t interval_ms, uint64_t count)
{
  struct window w = {.n = 0};
  struct pace pace = {.rate = interval_ms == 0 ? 0 : 1000 / interval_ms};
  if (interval_ms > 1000) die("INTERVAL_MS must be within 0..1000");
  int fd = udp_connect(to);
  udp_timeout(fd, 2000);
  for (uint64_t number = 0; count == 0 || number < count; number++) {
    pace_wait(&pace);
    if (ping(fd, number, &w.rtt_ns[w.n])) w.n++;
    else w.lost++;
    if (w.n == WINDOW || w.lost == WINDOW) report(&w);
  }
  report(&w);
  return 0;
}

static _Noreturn void run_server(const char *port)
{
  int fd = udp_listen(port);
  say("pinger serve port=%s", port);
  for (;;) {
    uint8_t datagram[2048];
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&from, &length);
    if (n >= 0) sendto(fd, datagram, (size_t)n, 0, (struct sockaddr *)&from, length);
  }
}

int main(int argc, char **argv)
{
  if (argc == 3 && strcmp(argv[1], "serve") == 0) run_server(argv[2]);
  if (argc >= 2 && argc <= 4 && strchr(argv[1], ':') != NULL)
    return run_client(argv[1], argc >= 3 ? parse_number(argv[2], "INTERVAL_MS") : 10,
                      argc == 4 ? parse_number(argv[3], "COUNT") : 0);
  die("usage: pinger serve PORT | ADDRESS:PORT [INTERVAL_MS] [COUNT]");
}
