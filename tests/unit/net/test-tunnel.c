/* test-tunnel.c - two switches joined over 127.0.0.1: frames and markers between hosts (N2 N5 N6), generations (G1), breaks, and peers that
 * send junk or break their word. */
#include "net-test.h"

#include "base/fault.h"
#include "base/messages.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <xxhash.h>

/* Hosts 1 and 2 with the VMs 1 and 2 (host 1) and 3 and 4 (host 2) on network 0. */
struct fixture { struct host *h[3]; int vm[5]; };

static uint32_t host_of(unsigned vm) { return vm <= 2 ? 1 : 2; }

static void join(struct fixture *f)
{
	host_add(f->h[1], 2, f->h[2]->port);
	host_add(f->h[2], 1, f->h[1]->port);
}

static void wait_up(struct fixture *f)
{
	HOST_WAIT(f->h[1], f->h[1]->up == 1 << 2);
	HOST_WAIT(f->h[2], f->h[2]->up == 1 << 1);
}

static void connect_vms(struct fixture *f)
{
	for (unsigned v = 1; v <= 4; v++)
		f->vm[v] = host_connect(f->h[host_of(v)], v);
}

static void setup(struct fixture *f, gconstpointer data)
{
	for (uint32_t id = 1; id <= 2; id++) {
		f->h[id] = host_new(id, data);
		host_network(f->h[id], 0);
		for (unsigned v = 1; v <= 4; v++)
			if (host_of(v) == id)
				host_vm(f->h[id], v, 0);
			else
				host_place(f->h[id], v, 0, host_of(v));
		host_start(f->h[id], 1, 0);
	}
	connect_vms(f);
}

static void setup_joined(struct fixture *f, gconstpointer data)
{
	setup(f, data);
	join(f);
	wait_up(f);
}

static void teardown(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (unsigned v = 1; v <= 4; v++)
		close(f->vm[v]);
	host_free(f->h[1]);
	host_free(f->h[2]);
}

/* ---- frames ---- */

static void test_unicast(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint32_t i = 0; i < 100; i++)
		vm_send(f->vm[1], 1, 3, i);
	for (uint32_t i = 0; i < 100; i++)
		vm_expect(f->vm[3], 1, i);
	vm_expect_nothing(f->vm[4]);
	vm_expect_nothing(f->vm[2]);
}

static void test_broadcast(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, BROADCAST, 5);
	vm_expect(f->vm[2], 1, 5);
	vm_expect(f->vm[3], 1, 5);
	vm_expect(f->vm[4], 1, 5);
	vm_expect_nothing(f->vm[1]);
	vm_send(f->vm[4], 4, 1, 6);
	vm_expect(f->vm[1], 4, 6);
}

/* N3: nothing comes from another host but what its VMs have sent with their own addresses. */
static void test_n3_not_its_own(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[3], 900, 1, 1);
	vm_send(f->vm[3], 1, 1, 2);
	vm_send(f->vm[3], 3, 1, 3);
	vm_expect(f->vm[1], 3, 3);
	vm_expect_nothing(f->vm[1]);
}

static void test_large(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct test_frame *t = g_new(struct test_frame, 1), *u = g_new(struct test_frame, 1);
	frame_fill(t, 1, 3, 9, VCFT_FRAME_MAX);
	for (int i = 0; i < 20; i++)
		vm_send_frame(f->vm[1], t);
	for (int i = 0; i < 20; i++) {
		vm_receive(f->vm[3], u);
		g_assert_cmpmem(t->bytes, t->size, u->bytes, u->size);
	}
	g_free(t);
	g_free(u);
}

/* What is sent before the tunnel is first up waits for it, in order, markers too. */
static void test_queued_before_up(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_add(f->h[1], 2, f->h[2]->port);
	for (uint32_t i = 0; i < 10; i++)
		vm_send(f->vm[1], 1, 3, i);
	host_settle(f->h[1], 10);
	host_add(f->h[2], 1, f->h[1]->port);
	for (uint32_t i = 0; i < 10; i++)
		vm_expect(f->vm[3], 1, i);
	wait_up(f);
	g_assert_cmpuint(HOST_GET(f->h[1], f->h[1]->downs), ==, 0);
}

/* ---- cut ---- */

static void cut_host(struct fixture *f, uint32_t id, uint64_t r)
{
	for (unsigned v = 1; v <= 4; v++)
		if (host_of(v) == id)
			host_cut(f->h[id], v, r);
	net_marker(f->h[id]->net, epoch_of(r), host_bit((struct host_id){ 3 - id }));
}

/* N6: complete only when the marker of the other host has come, and everything before it is in the record. */
static void test_n6_record(struct fixture *f, gconstpointer data)
{
	(void)data;
	cut_host(f, 2, 1);
	for (uint32_t i = 0; i < 5; i++)
		vm_send(f->vm[1], 1, 3, i);
	for (uint32_t i = 0; i < 5; i++)
		vm_expect(f->vm[3], 1, i);
	g_assert_cmpuint(HOST_GET(f->h[2], f->h[2]->complete), ==, 0);
	g_assert_null(net_take_record(f->h[2]->net, (struct vm_id){ 3 }, epoch_of(1)));
	vm_send(f->vm[1], 1, 3, 5); /* not yet read by the switch, or on its way: still in flight */
	cut_host(f, 1, 1);
	vm_send(f->vm[1], 1, 3, 6);
	HOST_WAIT(f->h[2], f->h[2]->complete == 1);
	HOST_WAIT(f->h[1], f->h[1]->complete == 1);
	record_expect(f->h[2], 3, 1, 1, 6, (uint32_t[]){ 0, 1, 2, 3, 4, 5 });
	record_expect(f->h[1], 1, 1, 0, 0, NULL);
	vm_expect(f->vm[3], 1, 5);
	vm_expect(f->vm[3], 1, 6);
}

/* P1 between hosts, and a marker that comes before the own cut. */
static void test_p1_held(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, 3, 1);
	vm_expect(f->vm[3], 1, 1);
	cut_host(f, 1, 1);
	vm_send(f->vm[1], 1, 3, 2);
	host_settle(f->h[2], 2);
	vm_expect_nothing(f->vm[3]);
	cut_host(f, 2, 1);
	vm_expect(f->vm[3], 1, 2);
	HOST_WAIT(f->h[2], f->h[2]->complete == 1);
	record_expect(f->h[2], 3, 1, 0, 0, NULL);
}

/* N5: in a queue that waits, the marker keeps its place between the frames. */
static void test_n5_marker_in_order(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_add(f->h[1], 2, f->h[2]->port);
	vm_send(f->vm[1], 1, 3, 1);
	vm_send(f->vm[1], 1, 3, 2);
	host_settle(f->h[1], 2);
	cut_host(f, 1, 1);
	vm_send(f->vm[1], 1, 3, 3);
	host_settle(f->h[1], 3);
	cut_host(f, 2, 1);
	host_add(f->h[2], 1, f->h[1]->port);
	for (uint32_t i = 1; i <= 3; i++)
		vm_expect(f->vm[3], 1, i);
	HOST_WAIT(f->h[2], f->h[2]->complete == 1);
	record_expect(f->h[2], 3, 1, 1, 2, (uint32_t[]){ 1, 2 });
}

/* ---- generations ---- */

/* A frame of an older generation is dropped; one of a newer is kept until it runs here, and comes behind the record. */
static void test_g1_generations(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, 3, 0);
	vm_expect(f->vm[3], 1, 0);
	cut_host(f, 1, 1); /* checkpoint 1 will be made again in generation 2 */
	cut_host(f, 2, 1);
	HOST_WAIT(f->h[1], f->h[1]->complete == 1);
	HOST_WAIT(f->h[2], f->h[2]->complete == 1);
	HOST_GET(f->h[2], f->h[2]->complete = 0);
	net_freeze(f->h[2]->net);
	host_start(f->h[1], 2, 0);
	vm_expect_closed(f->vm[1]);
	close(f->vm[1]);
	f->vm[1] = host_connect(f->h[1], 1);
	vm_send(f->vm[1], 1, 3, 20); /* host 2 is frozen in generation 1 */
	cut_host(f, 1, 1);
	vm_send(f->vm[1], 1, 3, 21);
	vm_send(f->vm[3], 3, 1, 1); /* thrown away */
	while (host_stats(f->h[2]).dropped < 1)
		sched_yield();
	net_rollback(f->h[2]->net, (struct generation){ 2 }, epoch_of(0));
	vm_expect_closed(f->vm[3]);
	close(f->vm[3]);
	f->vm[3] = host_connect(f->h[2], 3);
	vm_send(f->vm[1], 1, 3, 22);
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, 1, 3, 10, 64);
	uint8_t encoded[4 + 5 + 64] = { 1, 0, 0, 0, 0, 64 };
	memcpy(encoded + 9, t->bytes, 64);
	g_free(t);
	g_autoptr(GBytes) record = g_bytes_new(encoded, sizeof encoded);
	g_assert_true(net_reinject(f->h[2]->net, (struct vm_id){ 3 }, record, NULL));
	vm_expect_nothing(f->vm[3]);
	net_run(f->h[2]->net);
	vm_expect(f->vm[3], 1, 10);
	vm_expect(f->vm[3], 1, 20);
	host_settle(f->h[2], 1 + 3); /* 21 and 22 are of epoch 2 */
	vm_expect_nothing(f->vm[3]);
	cut_host(f, 2, 1);
	vm_expect(f->vm[3], 1, 21);
	vm_expect(f->vm[3], 1, 22);
	HOST_WAIT(f->h[2], f->h[2]->complete == 1); /* the marker was kept as well */
	host_start(f->h[1], 3, 1);
	vm_expect_closed(f->vm[1]);
	close(f->vm[1]);
	f->vm[1] = host_connect(f->h[1], 1);
	vm_send(f->vm[3], 3, 1, 30); /* generation 2, for host 1 too old */
	while (host_stats(f->h[1]).dropped < 1)
		sched_yield();
	vm_expect_nothing(f->vm[1]);
	g_assert_cmpuint(HOST_GET(f->h[1], f->h[1]->downs) + HOST_GET(f->h[2], f->h[2]->downs), ==, 0);
}

/* ---- breaks ---- */

static void test_reconnect(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (unsigned i = 1; i <= 3; i++) {
		net_forget_host(f->h[2]->net, (struct host_id){ 1 });
		HOST_WAIT(f->h[1], f->h[1]->downs == i);
		HOST_GET(f->h[2], f->h[2]->up = 0);
		host_add(f->h[2], 1, f->h[1]->port);
		wait_up(f);
		vm_send(f->vm[1], 1, 3, i);
		vm_expect(f->vm[3], 1, i);
	}
}

/* Half a frame is none: nobody gets it. What was not written whole goes over the next connection. */
static void test_torn(struct fixture *f, gconstpointer data)
{
	(void)data;
	fault_set(FAULT_TUNNEL_TORN, 1);
	for (uint32_t i = 0; i < 3; i++)
		vm_send(f->vm[1], 1, 3, i);
	HOST_WAIT(f->h[2], f->h[2]->downs == 1);
	for (uint32_t i = 0; i < 3; i++)
		vm_expect(f->vm[3], 1, i);
	vm_expect_nothing(f->vm[3]);
	wait_up(f);
	g_assert_cmpuint(fault_fired(FAULT_TUNNEL_TORN), ==, 1);
	fault_clear();
}

static const struct net_limits small = { .port_bytes = 64 << 10 };

/* A host that cannot be reached costs a bounded queue. */
static void test_unreachable(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_add(f->h[1], 2, 1);
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, 1, 3, 0, 1500);
	for (int i = 0; i < 400; i++)
		vm_send_frame(f->vm[1], t);
	g_free(t);
	host_settle(f->h[1], 400);
	g_assert_cmpuint(host_stats(f->h[1]).dropped, >=, 400 - 4 * (64 << 10) / 1500);
	vm_send(f->vm[1], 1, 2, 5);
	vm_expect(f->vm[2], 1, 5);
}

/* ---- a peer that is not to be trusted: the test plays host 1 towards switch 2 ---- */

struct victim { struct host *h; int vm[4]; int tunnel; };

static int tcp_connect_plain(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	struct timeval limit = { .tv_sec = LIMIT_S };
	g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), ==, 0);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof a), ==, 0);
	return fd;
}

/* Joins a socket of the test to a TLS connection, until both have ended: the test speaks plainly. */
struct relay { int here, there; struct tls_credentials *credentials; struct tls *tls; };

static void relay_out(struct relay *r, struct pollfd *p)
{
	uint8_t b[65536];
	ssize_t n = read(r->here, b, sizeof b);
	for (ssize_t at = 0, k; at < n; at += k) {
		k = tls_write(r->tls, &(struct iovec){ b + at, (size_t)(n - at) }, 1);
		if (k <= 0)
			n = -1;
	}
	if (n > 0)
		return;
	shutdown(r->there, n < 0 ? SHUT_RDWR : SHUT_WR);
	p->fd = -1;
}

static void relay_in(struct relay *r, struct pollfd *p)
{
	uint8_t b[65536];
	do {
		ssize_t n = tls_read(r->tls, b, sizeof b);
		if (n > 0 && send(r->here, b, (size_t)n, MSG_NOSIGNAL) == n)
			continue;
		shutdown(r->here, SHUT_RDWR);
		p->fd = -1;
	} while (p->fd >= 0 && tls_pending(r->tls));
}

static gpointer relay_main(gpointer data)
{
	struct relay *r = data;
	struct pollfd p[2] = { { .fd = r->here, .events = POLLIN }, { .fd = r->there, .events = POLLIN } };
	bool ok = tls_handshake(r->tls) == TLS_OPEN;
	while (ok && (p[0].fd >= 0 || p[1].fd >= 0) && poll(p, 2, LIMIT_S * 1000) > 0) {
		if (p[0].revents)
			relay_out(r, &p[0]);
		if (p[1].fd >= 0 && p[1].revents)
			relay_in(r, &p[1]);
	}
	tls_free(r->tls);
	tls_credentials_free(r->credentials);
	close(r->here);
	close(r->there);
	g_free(r);
	return NULL;
}

/* Under TLS: as the holder of that host's certificate. */
static int tcp_connect_as(uint16_t port, const char *name)
{
	struct timeval limit = { .tv_sec = LIMIT_S };
	int fd = tcp_connect_plain(port), pair[2];
	if (!with_tls())
		return fd;
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	struct relay *r = g_new0(struct relay, 1);
	*r = (struct relay){ .here = pair[1], .there = fd, .credentials = pki_test_credentials(name) };
	r->tls = tls_new(r->credentials, TLS_CONNECTS, fd, "host2");
	g_thread_unref(g_thread_new("relay", relay_main, r));
	return pair[0];
}

static int tcp_connect(uint16_t port) { return tcp_connect_as(port, "host1"); }

/* A message of hand-made fields in b, of which `used` bytes are written behind the header: HELLO and MARKER end with a checksum. */
static size_t finish(uint8_t *b, enum message_type type, size_t used)
{
	message_header_encode(b, type, used + 8);
	struct wire_writer w = wire_writer(b + MESSAGE_HEADER_BYTES + used, 8);
	wire_put_u64(&w, XXH3_64bits(b, MESSAGE_HEADER_BYTES + used));
	return MESSAGE_HEADER_BYTES + used + 8;
}

#define MESSAGE_ROOM (MESSAGE_HEADER_BYTES + 24u + 64u)

static size_t make_hello(uint8_t b[static MESSAGE_ROOM], uint32_t host)
{
	struct wire_writer w = wire_writer(b + MESSAGE_HEADER_BYTES, 12);
	wire_put_u32(&w, host);
	wire_put_u64(&w, 1);
	return finish(b, MESSAGE_TUNNEL_HELLO, w.used);
}

static size_t make_marker(uint8_t b[static MESSAGE_ROOM], uint64_t generation, uint64_t r)
{
	struct wire_writer w = wire_writer(b + MESSAGE_HEADER_BYTES, 16);
	wire_put_u64(&w, generation);
	wire_put_u64(&w, r);
	return finish(b, MESSAGE_MARKER, w.used);
}

/* The head of a FRAME whose n bytes stand behind it in b. */
static void make_head(uint8_t *b, uint64_t generation, uint64_t colour, uint32_t network, size_t n)
{
	message_header_encode(b, MESSAGE_FRAME, 24 + n);
	struct wire_writer w = wire_writer(b + MESSAGE_HEADER_BYTES, 24);
	wire_put_u64(&w, generation);
	wire_put_u64(&w, colour);
	wire_put_u32(&w, network);
	wire_put_u32(&w, (uint32_t)XXH3_64bits_withSeed(b + MESSAGE_HEADER_BYTES + 24, n, XXH3_64bits(b, MESSAGE_HEADER_BYTES + 20)));
}

static size_t make_frame(uint8_t b[static MESSAGE_ROOM], uint64_t generation, uint64_t colour, uint32_t network, unsigned from, uint32_t number)
{
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, from, 3, number, 64);
	memcpy(b + MESSAGE_HEADER_BYTES + 24, t->bytes, 64);
	g_free(t);
	make_head(b, generation, colour, network, 64);
	return MESSAGE_ROOM;
}

static void send_hello(int fd, uint32_t host)
{
	uint8_t b[MESSAGE_ROOM];
	vm_send_bytes(fd, b, make_hello(b, host));
}

static void send_marker(int fd, uint64_t generation, uint64_t r)
{
	uint8_t b[MESSAGE_ROOM];
	vm_send_bytes(fd, b, make_marker(b, generation, r));
}

static void send_frame(int fd, uint64_t generation, uint64_t colour, uint32_t network, unsigned from, uint32_t number)
{
	uint8_t b[MESSAGE_ROOM];
	vm_send_bytes(fd, b, make_frame(b, generation, colour, network, from, number));
}

static void victim_join(struct victim *v)
{
	uint8_t hello[MESSAGE_HEADER_BYTES + 20];
	v->tunnel = tcp_connect(v->h->port);
	send_hello(v->tunnel, 1);
	read_all(v->tunnel, hello, sizeof hello);
	HOST_WAIT(v->h, v->h->up == 1 << 1);
}

/* Switch 2 with VM 3; VM 1 is at host 1. */
static void victim_setup(struct victim *v, gconstpointer data)
{
	(void)data;
	v->h = host_new(2, NULL);
	host_network(v->h, 0);
	host_vm(v->h, 3, 0);
	host_place(v->h, 1, 0, 1);
	host_place(v->h, 9, 0, 7);
	host_add(v->h, 1, 1);
	host_start(v->h, 1, 0);
	v->vm[3] = host_connect(v->h, 3);
	victim_join(v);
	send_frame(v->tunnel, 1, 1, 0, 1, 1);
	vm_expect(v->vm[3], 1, 1);
}

static void victim_teardown(struct victim *v, gconstpointer data)
{
	(void)data;
	close(v->vm[3]);
	close(v->tunnel);
	host_free(v->h);
}

/* The connection was dropped for that reason; a better one is taken at once. */
static void expect_refused(struct victim *v, const char *why)
{
	vm_expect_closed(v->tunnel);
	HOST_WAIT(v->h, v->h->downs == 1 && v->h->last_note);
	g_assert_true(HOST_GET(v->h, strstr(v->h->last_note, why) != NULL));
	close(v->tunnel);
	victim_join(v);
	send_frame(v->tunnel, 1, 5, 0, 1, 99);
	host_settle(v->h, 2);
}

static void test_junk_header(struct victim *v, gconstpointer data)
{
	(void)data;
	vm_send_bytes(v->tunnel, "GET / HTTP/1.0\r\n\r\n", 18);
	expect_refused(v, "not a message");
}

static void test_junk_other_channel(struct victim *v, gconstpointer data)
{
	(void)data;
	uint8_t b[MESSAGE_HEADER_BYTES];
	message_header_encode(b, MESSAGE_KNOWN, 16);
	vm_send_bytes(v->tunnel, b, sizeof b);
	expect_refused(v, "not a message");
}

static void test_junk_too_long(struct victim *v, gconstpointer data)
{
	(void)data;
	uint8_t b[MESSAGE_HEADER_BYTES];
	message_header_encode(b, MESSAGE_FRAME, 65559);
	b[8] = 0x18; /* one more */
	vm_send_bytes(v->tunnel, b, sizeof b);
	expect_refused(v, "not a message");
}

static void test_junk_network(struct victim *v, gconstpointer data)
{
	send_frame(v->tunnel, 1, 1, GPOINTER_TO_UINT(data), 1, 2);
	expect_refused(v, GPOINTER_TO_UINT(data) < VCFT_NETWORK_MAX ? "unknown network" : "not a message");
}

/* TM2: a checksum that fits does not make a number fit. */
static void test_junk_number(struct victim *v, gconstpointer data)
{
	(void)data;
	send_frame(v->tunnel, 1, UINT64_MAX, 0, 1, 2);
	expect_refused(v, "not a message");
}

/* Send a message to the switch with one bit flipped, and behind it as much as its length may ask for now; it must not come to the VM. */
static void send_flipped(struct victim *v, uint8_t *message, size_t n, size_t bit)
{
	static const uint8_t more[65559];
	message[bit / 8] ^= (uint8_t)(1u << bit % 8);
	vm_send_bytes(v->tunnel, message, n);
	message[bit / 8] ^= (uint8_t)(1u << bit % 8);
	(void)!send(v->tunnel, more, sizeof more, MSG_NOSIGNAL);
}

/* TM1, on the real connection: every bit of a frame and of a marker. */
static void test_tm1_every_bit(struct victim *v, gconstpointer data)
{
	uint8_t b[MESSAGE_ROOM];
	size_t n = GPOINTER_TO_UINT(data) ? make_frame(b, 1, 1, 0, 1, 2) : make_marker(b, 1, 1);
	host_cut(v->h, 3, 1);
	net_marker(v->h->net, epoch_of(1), 1 << 1);   /* what would complete record 1, if it were taken */
	uint8_t markers[MESSAGE_HEADER_BYTES + 24];
	read_all(v->tunnel, markers, sizeof markers);
	for (size_t bit = 0; bit < n * 8; bit++) {
		send_flipped(v, b, n, bit);
		vm_expect_closed(v->tunnel);
		HOST_WAIT(v->h, v->h->downs == bit + 1);
		close(v->tunnel);
		victim_join(v);
	}
	vm_expect_nothing(v->vm[3]);
	g_assert_cmpuint(HOST_GET(v->h, v->h->complete), ==, 0);
	send_frame(v->tunnel, 1, 1, 0, 1, 3);
	vm_expect(v->vm[3], 1, 3);
	send_marker(v->tunnel, 1, 1);
	HOST_WAIT(v->h, v->h->complete == 1);
}

/* TM1 for a greeting: it is nobody's. */
static void test_tm1_hello(struct victim *v, gconstpointer data)
{
	(void)data;
	uint8_t b[MESSAGE_ROOM];
	size_t n = make_hello(b, 1);
	for (size_t bit = 0; bit < n * 8; bit++) {
		int fd = tcp_connect(v->h->port);
		b[bit / 8] ^= (uint8_t)(1u << bit % 8);
		vm_send_bytes(fd, b, n);
		b[bit / 8] ^= (uint8_t)(1u << bit % 8);
		vm_expect_closed(fd);
		close(fd);
	}
	g_assert_cmpuint(HOST_GET(v->h, v->h->downs), ==, 0);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
}

static void test_junk_second_hello(struct victim *v, gconstpointer data)
{
	(void)data;
	send_hello(v->tunnel, 1);
	expect_refused(v, "second hello");
}

static void test_n5_markers_out_of_order(struct victim *v, gconstpointer data)
{
	(void)data;
	send_marker(v->tunnel, 1, 3);
	send_marker(v->tunnel, 1, 3);
	expect_refused(v, "markers out of order");
}

static void test_n5_frame_behind_marker(struct victim *v, gconstpointer data)
{
	(void)data;
	send_marker(v->tunnel, 1, 3);
	send_frame(v->tunnel, 1, 3, 0, 1, 2);
	expect_refused(v, "behind its marker");
	vm_expect_nothing(v->vm[3]);
}

/* Old generations are dropped without a word, whatever their colour; forged sources too. */
static void test_dropped(struct victim *v, gconstpointer data)
{
	(void)data;
	send_frame(v->tunnel, 0, 77, 0, 1, 2);
	send_marker(v->tunnel, 0, 77);
	send_frame(v->tunnel, 1, 1, 0, 3, 3); /* my own VM's address */
	send_frame(v->tunnel, 1, 1, 0, 9, 4); /* of a VM that another host runs */
	send_frame(v->tunnel, 1, 1, 0, 1, 5);
	vm_expect(v->vm[3], 1, 5);
	vm_expect_nothing(v->vm[3]);
	g_assert_cmpuint(HOST_GET(v->h, v->h->downs), ==, 0);
	g_assert_cmpuint(host_stats(v->h).dropped, ==, 4);
}

/* Byte for byte: messages may come in any pieces. */
static void test_pieces(struct victim *v, gconstpointer data)
{
	(void)data;
	int pair[2];
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
	send_frame(pair[0], 1, 1, 0, 1, 42);
	char c;
	while (recv(pair[1], &c, 1, MSG_DONTWAIT) == 1)
		vm_send_bytes(v->tunnel, &c, 1);
	vm_expect(v->vm[3], 1, 42);
	close(pair[0]);
	close(pair[1]);
}

/* N6 with a peer that breaks its word in a way that only the record shows: a late frame is not delivered. The marker says that none comes. */
static void test_n6_complete_by_later_marker(struct victim *v, gconstpointer data)
{
	(void)data;
	host_cut(v->h, 3, 1);
	send_frame(v->tunnel, 1, 1, 0, 1, 10);
	vm_expect(v->vm[3], 1, 10);
	net_marker(v->h->net, epoch_of(1), 1 << 1);
	send_marker(v->tunnel, 1, 2); /* the other host has gone on: 1 was given up there, or a marker was left out */
	HOST_WAIT(v->h, v->h->complete == 1);
	record_expect(v->h, 3, 1, 1, 1, (uint32_t[]){ 10 });
}

/* N6: when the record is complete nothing more belongs to it: what still comes, from a host that nobody waited for, is not delivered. */
static void test_n6_late(struct victim *v, gconstpointer data)
{
	(void)data;
	host_cut(v->h, 3, 1);
	net_marker(v->h->net, epoch_of(1), 0);
	HOST_WAIT(v->h, v->h->complete == 1);
	send_frame(v->tunnel, 1, 1, 0, 1, 10);
	send_frame(v->tunnel, 1, 2, 0, 1, 11);
	vm_expect(v->vm[3], 1, 11);
	record_expect(v->h, 3, 1, 1, 0, NULL);
	g_assert_cmpuint(host_stats(v->h).dropped, ==, 1);
}

/* Good messages with some bytes changed: whatever happens to the connection, the switch lives and its VMs go on. */
static void test_junk_random(struct victim *v, gconstpointer data)
{
	(void)data;
	for (int round = 0; round < 300; round++) {
		int pair[2];
		uint8_t b[4096];
		g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
		send_hello(pair[0], 1);
		for (uint32_t i = 0; i < 8; i++) {
			send_frame(pair[0], 1, 1 + i, 0, 1, i);
			send_marker(pair[0], 1, 1 + i);
		}
		ssize_t n = read(pair[1], b, sizeof b);
		close(pair[0]);
		close(pair[1]);
		for (int flips = g_test_rand_int_range(0, 4); flips > 0; flips--)
			b[g_test_rand_int_range(0, (gint32)n)] = (uint8_t)g_test_rand_int();
		int fd = tcp_connect(v->h->port);
		vm_send_bytes(fd, b, (size_t)g_test_rand_int_range(1, (gint32)n + 1));
		shutdown(fd, SHUT_WR);
		while (read(fd, b, sizeof b) > 0)
			;
		close(fd);
	}
	net_rollback(v->h->net, (struct generation){ 2 }, epoch_of(0));
	net_run(v->h->net);
	vm_expect_closed(v->tunnel);
	close(v->tunnel);
	close(v->vm[3]);
	v->vm[3] = host_connect(v->h, 3);
	HOST_WAIT(v->h, v->h->up == 0);
	victim_join(v);
	send_frame(v->tunnel, 2, 1, 0, 1, 12345);
	vm_expect(v->vm[3], 1, 12345);
}

/* Strangers who say nothing, or wrong things, take no place of the host that is expected. */
static void test_strangers(struct victim *v, gconstpointer data)
{
	(void)data;
	int junk[8];
	host_add(v->h, 5, 1);
	for (int i = 0; i < 8; i++) {
		junk[i] = tcp_connect(v->h->port);
		if (i % 4 == 1)
			vm_send_bytes(junk[i], "junkjunkjunkjunkjunkjunkjunk", 28);
		if (i % 4 == 2)
			send_hello(junk[i], 5); /* a higher id does not connect to me */
		if (i % 4 == 3)
			send_hello(junk[i], 0);
	}
	for (int i = 0; i < 8; i++)
		if (i % 4)
			vm_expect_closed(junk[i]);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
	for (int i = 0; i < 8; i++)
		close(junk[i]);
}

/* The same host connects anew: the old connection goes, and nothing that is still in it comes any more. */
static void test_replaced(struct victim *v, gconstpointer data)
{
	(void)data;
	int old = v->tunnel;
	uint8_t hello[MESSAGE_HEADER_BYTES + 20];
	v->tunnel = tcp_connect(v->h->port);
	send_hello(v->tunnel, 1);
	read_all(v->tunnel, hello, sizeof hello);
	vm_expect_closed(old);
	close(old);
	HOST_WAIT(v->h, v->h->downs == 1 && v->h->up == 1 << 1);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
}

/* A flood for a generation that never starts is bounded. */
static void test_ahead_bounded(struct victim *v, gconstpointer data)
{
	(void)data;
	static uint8_t b[MESSAGE_HEADER_BYTES + 24 + VCFT_FRAME_MAX];
	make_head(b, 99, 1, 0, VCFT_FRAME_MAX);
	for (int i = 0; i < 2000; i++)
		if (send(v->tunnel, b, sizeof b, MSG_NOSIGNAL) < 0)
			break;
	HOST_WAIT(v->h, v->h->downs == 1);
	g_assert_true(HOST_GET(v->h, strstr(v->h->last_note, "too much") != NULL));
}

/* ---- N7 ---- */

/* Whatever it says first: it is told nothing, and the tunnel that is up goes on. */
static void test_n7_told_nothing(struct victim *v, gconstpointer data)
{
	(void)data;
	uint8_t b[64];
	const char *const first[] = { "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x00\x05hello", "HELLO", NULL };
	for (unsigned i = 0; first[i]; i++) {
		int fd = tcp_connect_plain(v->h->port);
		if (i < 2)
			vm_send_bytes(fd, first[i], strlen(first[i]) + (i == 1));
		else
			send_hello(fd, 1);    /* as if there were no TLS */
		shutdown(fd, SHUT_WR);
		g_assert_cmpint(read(fd, b, sizeof b), <=, 0);
		close(fd);
	}
	g_assert_cmpuint(HOST_GET(v->h, v->h->downs), ==, 0);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
}

/* The CA's certificate, but another host's: HELLO as host 1 gets nothing and takes nobody's place. */
static void test_n7_another_hosts_certificate(struct victim *v, gconstpointer data)
{
	(void)data;
	char c;
	int fd = tcp_connect_as(v->h->port, "host3");
	send_hello(fd, 1);
	g_assert_cmpint(read(fd, &c, 1), ==, 0);
	close(fd);
	HOST_WAIT(v->h, v->h->last_note && strstr(v->h->last_note, "another host's certificate"));
	g_assert_cmpuint(HOST_GET(v->h, v->h->downs), ==, 0);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
}

/* The side that connects: who answers with another host's certificate is told nothing, and why is said. */
static void test_n7_wrong_host_answers(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct host *wrong = host_new_with(2, pki_test_credentials("host3"), NULL);
	host_add(wrong, 1, f->h[1]->port);
	host_add(f->h[1], 2, wrong->port);
	HOST_WAIT(f->h[1], f->h[1]->last_note && strstr(f->h[1]->last_note, "not that of host host2"));
	g_assert_cmpuint(HOST_GET(f->h[1], f->h[1]->up), ==, 0);
	g_assert_cmpuint(HOST_GET(wrong, wrong->up), ==, 0);
	host_add(f->h[1], 2, f->h[2]->port);
	host_add(f->h[2], 1, f->h[1]->port);
	wait_up(f);
	host_free(wrong);
}

/* As many as may wait, and more, connect and stay silent: a host gets through. */
static void test_n7_silent_crowd(struct victim *v, gconstpointer data)
{
	(void)data;
	enum { CROWD = 100 };
	int fd[CROWD], old = v->tunnel;
	for (int i = 0; i < CROWD; i++)
		fd[i] = tcp_connect_plain(v->h->port);
	victim_join(v);
	vm_expect_closed(old);
	close(old);
	send_frame(v->tunnel, 1, 1, 0, 1, 2);
	vm_expect(v->vm[3], 1, 2);
	for (int i = 0; i < CROWD; i++)
		close(fd[i]);
}

static void add_n7(void)
{
	g_test_add("/net/tunnel/N7-told-nothing", struct victim, NULL, victim_setup, test_n7_told_nothing, victim_teardown);
	g_test_add("/net/tunnel/N7-another-hosts-certificate", struct victim, NULL, victim_setup, test_n7_another_hosts_certificate, victim_teardown);
	g_test_add("/net/tunnel/N7-silent-crowd", struct victim, NULL, victim_setup, test_n7_silent_crowd, victim_teardown);
	g_test_add("/net/tunnel/N7-wrong-host-answers", struct fixture, NULL, setup, test_n7_wrong_host_answers, teardown);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
#define ADD(name, function, data) g_test_add("/net/tunnel/" name, struct fixture, data, setup_joined, function, teardown)
	ADD("unicast", test_unicast, NULL);
	ADD("broadcast", test_broadcast, NULL);
	ADD("N3-not-its-own", test_n3_not_its_own, NULL);
	ADD("large", test_large, NULL);
	ADD("N6-record", test_n6_record, NULL);
	ADD("P1-held", test_p1_held, NULL);
	ADD("G1-generations", test_g1_generations, NULL);
	ADD("reconnect", test_reconnect, NULL);
	ADD("torn", test_torn, NULL);
#undef ADD
#define ADD(name, function, data) g_test_add("/net/tunnel/" name, struct fixture, data, setup, function, teardown)
	ADD("N5-marker-in-order", test_n5_marker_in_order, NULL);
	ADD("queued-before-up", test_queued_before_up, NULL);
	ADD("unreachable", test_unreachable, &small);
#undef ADD
#define ADD(name, function, data) g_test_add("/net/tunnel/" name, struct victim, data, victim_setup, function, victim_teardown)
	ADD("junk-header", test_junk_header, NULL);
	ADD("junk-other-channel", test_junk_other_channel, NULL);
	ADD("junk-too-long", test_junk_too_long, NULL);
	ADD("junk-network-1", test_junk_network, GUINT_TO_POINTER(1));
	ADD("junk-network-64", test_junk_network, GUINT_TO_POINTER(64));
	ADD("junk-network-most", test_junk_network, GUINT_TO_POINTER(UINT32_MAX));
	ADD("TM2-number", test_junk_number, NULL);
	ADD("TM1-frame", test_tm1_every_bit, GUINT_TO_POINTER(1));
	ADD("TM1-marker", test_tm1_every_bit, GUINT_TO_POINTER(0));
	ADD("TM1-hello", test_tm1_hello, NULL);
	ADD("junk-second-hello", test_junk_second_hello, NULL);
	ADD("N5-markers-out-of-order", test_n5_markers_out_of_order, NULL);
	ADD("N5-frame-behind-marker", test_n5_frame_behind_marker, NULL);
	ADD("dropped", test_dropped, NULL);
	ADD("pieces", test_pieces, NULL);
	ADD("N6-later-marker", test_n6_complete_by_later_marker, NULL);
	ADD("N6-late", test_n6_late, NULL);
	ADD("junk-random", test_junk_random, NULL);
	ADD("strangers", test_strangers, NULL);
	ADD("replaced", test_replaced, NULL);
	ADD("ahead-bounded", test_ahead_bounded, NULL);
	if (with_tls())
		add_n7();
	return g_test_run();
}
