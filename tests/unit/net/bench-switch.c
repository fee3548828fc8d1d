/* bench-switch.c - how fast frames go through one switch (two Unix sockets) and through two (a tunnel on 127.0.0.1): frames a second at 64 and
 * 1514 bytes, and the round trip of one frame of 64 bytes, beside that of a plain pair of sockets. Not a test; one line each. */
#include "net-test.h"

#include "base/clock.h"

#define BATCH 32
#define SECONDS 1.0

struct flow { int from, to; size_t size; unsigned source, target; volatile bool end; uint64_t frames; };

static void *send_main(void *data)
{
	struct flow *w = data;
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, w->source, w->target, 0, w->size);
	g_autofree uint8_t *b = g_malloc(BATCH * (w->size + 4));
	uint32_t be = GUINT32_TO_BE((uint32_t)w->size);
	for (int i = 0; i < BATCH; i++) {
		memcpy(b + (size_t)i * (w->size + 4), &be, 4);
		memcpy(b + (size_t)i * (w->size + 4) + 4, t->bytes, w->size);
	}
	g_free(t);
	while (!w->end)
		for (size_t at = 0, all = BATCH * (w->size + 4); at < all;) {
			ssize_t n = send(w->from, b + at, all - at, MSG_NOSIGNAL);
			if (n <= 0)
				return NULL;
			at += (size_t)n;
		}
	shutdown(w->from, SHUT_WR);
	return NULL;
}

static void *receive_main(void *data)
{
	struct flow *w = data;
	static uint8_t b[256 << 10];
	uint64_t bytes = 0;
	while (!w->end) {
		ssize_t n = read(w->to, b, sizeof b);
		if (n > 0)
			bytes += (uint64_t)n;
	}
	w->frames = bytes / (w->size + 4);
	return NULL;
}

static void throughput(const char *what, int from, int to, unsigned target, size_t size)
{
	struct flow w = { .from = from, .to = to, .size = size, .source = 1, .target = target };
	struct timeval limit = { .tv_usec = 100000 };
	setsockopt(to, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	pthread_t s, r;
	nsec_t t = clock_now();
	pthread_create(&r, NULL, receive_main, &w);
	pthread_create(&s, NULL, send_main, &w);
	g_usleep((gulong)(SECONDS * 1e6)); /* the time that is measured */
	w.end = true;
	pthread_join(r, NULL);
	double seconds = (double)(clock_now() - t) / 1e9;
	pthread_join(s, NULL);
	printf("%-28s %4zu bytes: %8.0f frames/s, %6.2f Gbit/s\n", what, size, (double)w.frames / seconds,
	       (double)w.frames * (double)size * 8 / seconds / 1e9);
}

struct echo { int fd; unsigned number; unsigned rounds; };

static void *echo_main(void *data)
{
	struct echo *e = data;
	struct test_frame *t = g_new(struct test_frame, 1);
	for (unsigned i = 0; i < e->rounds; i++) {
		vm_receive(e->fd, t);
		vm_send(e->fd, e->number, 1, i);
	}
	g_free(t);
	return NULL;
}

static int compare(const void *a, const void *b) { return *(const nsec_t *)a < *(const nsec_t *)b ? -1 : 1; }

static void round_trip(const char *what, int a, int b, unsigned target)
{
	enum { N = 5000 };
	static nsec_t times[N];
	struct echo e = { b, target, N };
	pthread_t thread;
	pthread_create(&thread, NULL, echo_main, &e);
	struct test_frame *t = g_new(struct test_frame, 1);
	for (unsigned i = 0; i < N; i++) {
		nsec_t start = clock_now();
		vm_send(a, 1, target, i);
		vm_receive(a, t);
		times[i] = clock_now() - start;
	}
	pthread_join(thread, NULL);
	qsort(times, N, sizeof times[0], compare);
	printf("%-28s round trip: median %.1f us, 99%% %.1f us\n", what, (double)times[N / 2] / 1e3, (double)times[N * 99 / 100] / 1e3);
	g_free(t);
}

/* What a VM's pause pays. */
static void cuts(const char *what, struct host *h)
{
	enum { N = 2000 };
	static nsec_t times[N];
	for (uint64_t r = 1; r <= N; r++) {
		nsec_t start = clock_now();
		host_cut(h, 1, r);
		times[r - 1] = clock_now() - start;
		host_cut(h, 2, r);
		net_marker(h->net, epoch_of(r), 0);
	}
	qsort(times, N, sizeof times[0], compare);
	printf("%-28s median %.1f us, 99%% %.1f us\n", what, (double)times[N / 2] / 1e3, (double)times[N * 99 / 100] / 1e3);
}

/* argument `tunnel`: that throughput alone (bench/tls). */
int main(int argc, char **argv)
{
	bool all = argc < 2 || strcmp(argv[1], "tunnel") != 0;
	struct host *h1 = host_new(1, NULL), *h2 = host_new(2, NULL);
	host_network(h1, 0);
	host_network(h2, 0);
	host_vm(h1, 1, 0);
	host_vm(h1, 2, 0);
	host_vm(h2, 3, 0);
	host_place(h1, 3, 0, 2);
	host_place(h2, 1, 0, 1);
	host_place(h2, 2, 0, 1);
	host_add(h1, 2, h2->port);
	host_add(h2, 1, h1->port);
	HOST_WAIT(h1, h1->up);
	host_start(h1, 1, 0);
	host_start(h2, 1, 0);
	int v1 = host_connect(h1, 1), v2 = host_connect(h1, 2), v3 = host_connect(h2, 3), pair[2];
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
	if (all) {
		round_trip("a pair of sockets", pair[0], pair[1], 2);
		round_trip("one switch", v1, v2, 2);
	}
	round_trip("two switches and a tunnel", v1, v3, 3);
	if (all) {
		cuts("cut of an idle VM", h1);
		throughput("one switch", v1, v2, 2, 1514);
	}
	close(v1);
	close(v2);
	v1 = host_connect(h1, 1);
	v2 = host_connect(h1, 2);
	if (all)
		throughput("one switch", v1, v2, 2, 64);
	close(v1);
	v1 = host_connect(h1, 1);
	if (all)
		host_cut(h2, 3, 2000);
	throughput("two switches and a tunnel", v1, v3, 3, 1514);
	struct net_stats a = host_stats(h1), b = host_stats(h2);
	printf("frames %" PRIu64 " and %" PRIu64 ", dropped for full queues %" PRIu64 " and %" PRIu64 "\n", a.frames, b.frames, a.dropped, b.dropped);
	close(v1);
	close(v2);
	close(v3);
	close(pair[0]);
	close(pair[1]);
	host_free(h1);
	host_free(h2);
	return 0;
}
