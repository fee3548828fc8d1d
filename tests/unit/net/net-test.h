/* net-test.h - verbs for the tests of src/net: a fake VM (the other end of a NIC's Unix socket), frames with a source, a target and a number, and
 * switches that record what they call back. With VCFT_TEST_TLS in the environment all tunnels are under TLS, those of peers that the test plays
 * too. Waiting is for an event, with a limit; "nothing came" is asked after the switch has said that it
 * has handled the frame. */
#ifndef NET_TEST_H
#define NET_TEST_H

#include "../pki-test.h"

#include "base/wire.h"
#include "net/net.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TYPE_HIGH 0x88
#define TYPE_LOW 0xb5           /* local experiments */
#define LIMIT_S 10

/* ---- frames ---- */

static inline void mac_of(unsigned vm, uint8_t mac[static 6])
{
	const uint8_t m[6] = { 0x52, 0x54, 0, 0, (uint8_t)(vm >> 8), (uint8_t)vm };
	memcpy(mac, m, 6);
}

#define BROADCAST 0xffffu

struct test_frame { size_t size; uint8_t bytes[VCFT_FRAME_MAX]; };

static inline void frame_fill(struct test_frame *f, unsigned from, unsigned to, uint32_t number, size_t size)
{
	memset(f->bytes, (int)number, size);
	f->size = size;
	if (to == BROADCAST)
		memset(f->bytes, 0xff, 6);
	else
		mac_of(to, f->bytes);
	mac_of(from, f->bytes + 6);
	f->bytes[12] = TYPE_HIGH;
	f->bytes[13] = TYPE_LOW;
	memcpy(f->bytes + 14, &number, 4);
}

static inline uint32_t frame_number(const uint8_t *bytes)
{
	uint32_t n;
	memcpy(&n, bytes + 14, 4);
	return n;
}

static inline unsigned frame_from(const uint8_t *bytes) { return (unsigned)bytes[10] << 8 | bytes[11]; }

/* ---- the fake VM ---- */

static inline int vm_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	g_assert_cmpuint(strlen(path), <, sizeof a.sun_path);
	strcpy(a.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = { .tv_sec = LIMIT_S };
	g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), ==, 0);
	g_assert_cmpint(connect(fd, (struct sockaddr *)&a, sizeof a), ==, 0);
	return fd;
}

static inline void vm_send_bytes(int fd, const void *bytes, size_t n)
{
	g_assert_cmpint(send(fd, bytes, n, MSG_NOSIGNAL), ==, n);
}

static inline void vm_send_frame(int fd, const struct test_frame *f)
{
	g_autofree uint8_t *b = g_malloc(4 + f->size);
	uint32_t be = GUINT32_TO_BE((uint32_t)f->size);
	memcpy(b, &be, 4);
	memcpy(b + 4, f->bytes, f->size);
	vm_send_bytes(fd, b, 4 + f->size);
}

static inline void vm_send(int fd, unsigned from, unsigned to, uint32_t number)
{
	struct test_frame *f = g_new(struct test_frame, 1);
	frame_fill(f, from, to, number, 64);
	vm_send_frame(fd, f);
	g_free(f);
}

static inline void read_all(int fd, void *bytes, size_t n)
{
	for (size_t at = 0; at < n;) {
		ssize_t k = read(fd, (char *)bytes + at, n - at);
		if (k <= 0)
			g_error("no frame came: %s", k ? g_strerror(errno) : "closed");
		at += (size_t)k;
	}
}

static inline void vm_receive(int fd, struct test_frame *ret)
{
	uint32_t be;
	read_all(fd, &be, 4);
	ret->size = GUINT32_FROM_BE(be);
	g_assert_cmpuint(ret->size, <=, VCFT_FRAME_MAX);
	read_all(fd, ret->bytes, ret->size);
}

/* The next frame must be that one. */
static inline void vm_expect(int fd, unsigned from, uint32_t number)
{
	struct test_frame *f = g_new(struct test_frame, 1);
	vm_receive(fd, f);
	g_assert_cmpuint(frame_from(f->bytes), ==, from);
	g_assert_cmpuint(frame_number(f->bytes), ==, number);
	g_free(f);
}

static inline void vm_expect_nothing(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	g_assert_cmpint(poll(&p, 1, 0), ==, 0);
}

static inline void vm_expect_closed(int fd)
{
	char c;
	ssize_t n = read(fd, &c, 1);
	g_assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
}

/* ---- a switch ---- */

#define PATHS_MAX 16

struct host {
	struct net *net;
	struct tls_credentials *credentials;
	uint16_t port;
	char *directory;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t complete;              /* newest record that is complete */
	uint64_t up;                    /* mask of hosts */
	unsigned downs, notes;
	char *last_note;
};

static inline void host_record_complete(struct epoch_id r, void *user)
{
	struct host *h = user;
	pthread_mutex_lock(&h->lock);
	h->complete = r.n;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
}

static inline void host_tunnel_state(struct host_id id, bool up, void *user)
{
	struct host *h = user;
	pthread_mutex_lock(&h->lock);
	h->up = up ? h->up | host_bit(id) : h->up & ~host_bit(id);
	h->downs += !up;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
}

static inline void host_note(const char *text, void *user)
{
	struct host *h = user;
	pthread_mutex_lock(&h->lock);
	h->notes++;
	g_free(h->last_note);
	h->last_note = g_strdup(text);
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
}

/* Wait until expression is true of the host's fields. */
#define HOST_WAIT(h, expression) \
	do { \
		struct timespec until_; \
		clock_gettime(CLOCK_REALTIME, &until_); \
		until_.tv_sec += LIMIT_S; \
		pthread_mutex_lock(&(h)->lock); \
		int e_ = 0; \
		while (!(expression) && !e_) \
			e_ = pthread_cond_timedwait(&(h)->changed, &(h)->lock, &until_); \
		bool ok_ = (expression); \
		pthread_mutex_unlock(&(h)->lock); \
		g_assert_true(ok_); \
	} while (0)

/* A number of the host's fields now. */
#define HOST_GET(h, expression) \
	({ \
		pthread_mutex_lock(&(h)->lock); \
		uint64_t n_ = (expression); \
		pthread_mutex_unlock(&(h)->lock); \
		n_; \
	})

static const struct net_callbacks host_callbacks = { host_record_complete, host_tunnel_state, host_note };

static inline bool with_tls(void) { return g_getenv("VCFT_TEST_TLS") != NULL; }

/* The name of a host with that id. */
static inline const char *name_of(uint32_t id)
{
	static const char *const names[] = { "host0", "host1", "host2", "host3", "host4", "host5" };
	return names[id];
}

static inline struct host *host_new_with(uint32_t id, struct tls_credentials *credentials, const struct net_limits *limits)
{
	g_autoptr(GError) error = NULL;
	struct host *h = g_new0(struct host, 1);
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->changed, NULL);
	h->directory = g_dir_make_tmp("vcft-net-XXXXXX", &error);
	g_assert_no_error(error);
	h->net = net_new((struct host_id){ id }, "127.0.0.1", &h->port, credentials, limits, &host_callbacks, h, &error);
	g_assert_no_error(error);
	h->credentials = credentials;
	return h;
}

static inline struct host *host_new(uint32_t id, const struct net_limits *limits)
{
	return host_new_with(id, with_tls() ? pki_test_credentials(name_of(id)) : NULL, limits);
}

static inline void host_add(struct host *h, uint32_t id, uint16_t port) { net_add_host(h->net, (struct host_id){ id }, name_of(id), "127.0.0.1", port); }

static inline void host_free(struct host *h)
{
	net_free(h->net);
	tls_credentials_free(h->credentials);
	g_assert_cmpint(g_rmdir(h->directory), ==, 0); /* no socket is left behind */
	g_free(h->directory);
	g_free(h->last_note);
	pthread_mutex_destroy(&h->lock);
	pthread_cond_destroy(&h->changed);
	g_free(h);
}

static inline void host_network(struct host *h, uint32_t network)
{
	g_autoptr(GError) error = NULL;
	g_assert_true(net_add_network(h->net, network, NULL, true, &error));
	g_assert_no_error(error);
}

static inline char *host_path(struct host *h, unsigned vm, unsigned nic) { return g_strdup_printf("%s/%u.%u", h->directory, vm, nic); }

/* A VM with one NIC on the network, not connected. */
static inline void host_vm(struct host *h, unsigned vm, uint32_t network)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *path = host_path(h, vm, 0);
	const char *paths[] = { path };
	struct net_nic_spec nic = { .network = network };
	mac_of(vm, nic.mac);
	net_add_vm(h->net, (struct vm_id){ vm }, &nic, 1, paths, &error);
	g_assert_no_error(error);
}

static inline int host_connect(struct host *h, unsigned vm)
{
	g_autofree char *path = host_path(h, vm, 0);
	return vm_connect(path);
}

static inline void host_place(struct host *h, unsigned vm, uint32_t network, uint32_t where)
{
	struct net_nic_spec nic = { .network = network };
	mac_of(vm, nic.mac);
	net_place(h->net, (struct vm_id){ vm }, &nic, 1, (struct host_id){ where });
}

static inline void host_start(struct host *h, uint64_t generation, uint64_t c)
{
	net_rollback(h->net, (struct generation){ generation }, epoch_of(c));
	net_run(h->net);
}

static inline void host_cut(struct host *h, unsigned vm, uint64_t r) { net_cut(h->net, (struct vm_id){ vm }, epoch_of(r)); }

/* Wait until the switch has taken in so many frames in all. */
static inline void host_settle(struct host *h, uint64_t frames)
{
	struct net_stats s;
	for (int i = 0; i < 1000000; i++) {
		net_stats(h->net, &s);
		if (s.frames >= frames)
			return;
		sched_yield();
	}
	g_error("only %" PRIu64 " of %" PRIu64 " frames came", s.frames, frames);
}

static inline struct net_stats host_stats(struct host *h)
{
	struct net_stats s;
	net_stats(h->net, &s);
	return s;
}

static inline uint32_t read_u32(const uint8_t *p)
{
	struct wire_reader r = wire_reader(p, 4);
	return wire_u32(&r);
}

/* The record of vm for r must have exactly these numbers, all from `from`. */
static inline void record_expect(struct host *h, unsigned vm, uint64_t r, unsigned from, unsigned count, const uint32_t *numbers)
{
	g_autoptr(GBytes) record = net_take_record(h->net, (struct vm_id){ vm }, epoch_of(r));
	g_assert_nonnull(record);
	gsize size;
	const uint8_t *p = g_bytes_get_data(record, &size);
	struct wire_reader rd = wire_reader(p, size);
	g_assert_cmpuint(wire_u32(&rd), ==, count);
	for (unsigned i = 0; i < count; i++) {
		g_assert_cmpuint(wire_u8(&rd), ==, 0);
		uint32_t n = wire_u32(&rd);
		const uint8_t *b = wire_bytes(&rd, n);
		g_assert_nonnull(b);
		g_assert_cmpuint(frame_from(b), ==, from);
		g_assert_cmpuint(frame_number(b), ==, numbers[i]);
	}
	g_assert_true(wire_done(&rd));
}

#endif
