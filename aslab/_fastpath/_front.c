/* Front: a cache's allocations that hit; and Lease, an allocation and its free around a block. */

#include "_core.h"

/* Whether an allocation may simply pop, or does so after all that the detour is for. */
static inline int front_is_direct(Front *front)
{
    return front->magazine != NULL && front->home != NULL &&
           (front->magazine->detour == 0 ||
            (front->magazine->detour == OPTIONS && ((Origin *)front->home)->movable));
}

PyObject *front_hit(Core *core, Front *front)
{
    if (!front_is_direct(front))
        return NULL;
    Slot *slot = magazine_pop(front->magazine);
    Origin *home = (Origin *)front->home;
    return slot == NULL ? NULL : home->movable ? managed_new(core, home, slot) : handle_new(core, home, slot);
}

PyObject *front_alloc_nowait(Core *core, PyObject *const *args)
{
    return front_hit(core, (Front *)args[0]);
}

PyObject *front_alloc(Core *core, PyObject *const *args)
{
    Front *front = (Front *)args[0];
    if (!front_is_direct(front) || Py_SIZE(front->magazine) == 0)
        return NULL;
    return ready_later(core, front); /* it takes its object when it is awaited, as a coroutine does */
}

PyObject *front_lease(Core *core, PyObject *const *args)
{
    Front *front = (Front *)args[0];
    Lease *lease;
    if (front->magazine == NULL)
        return NULL;
    if (core->n_leases) {
        lease = core->leases[--core->n_leases];
        _Py_NewReference((PyObject *)lease); /* it has kept its type */
    } else if ((lease = PyObject_GC_New(Lease, core->lease)) == NULL) {
        return NULL;
    }
    lease->front = (Front *)Py_NewRef((PyObject *)front);
    lease->alloc = lease->buffer = NULL;
    PyObject_GC_Track(lease);
    return (PyObject *)lease;
}

static int front_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Front *)self)->magazine);
    Py_VISIT(((Front *)self)->home);
    return 0;
}

static int front_clear(PyObject *self)
{
    Py_CLEAR(((Front *)self)->magazine);
    Py_CLEAR(((Front *)self)->home);
    return 0;
}

static void front_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    front_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *front_get(PyObject *self, void *offset)
{
    PyObject *value = *(PyObject **)((char *)self + (size_t)offset);
    if (value == NULL)
        PyErr_SetString(PyExc_AttributeError, "not set yet");
    return Py_XNewRef(value);
}

/* The shortcuts trust the type of what is here. */
static int front_set(PyObject *self, PyObject *value, void *offset)
{
    PyObject **place = (PyObject **)((char *)self + (size_t)offset), *old = *place;
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL)
        return -1;
    PyTypeObject *type = (size_t)offset == offsetof(Front, magazine) ? core->magazine : core->origin;
    if (value == NULL || !PyObject_TypeCheck(value, type)) {
        PyErr_Format(PyExc_TypeError, "%s expected", type->tp_name);
        return -1;
    }
    *place = Py_NewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyMethodDef front_methods[] = {METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
                                      {NULL, NULL, 0, NULL}};
static PyGetSetDef front_getset[] = {
    {"_magazine", front_get, front_set, NULL, (void *)offsetof(Front, magazine)},
    {"_home", front_get, front_set, NULL, (void *)offsetof(Front, home)},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot front_slots[] = {{Py_tp_new, core_plain_new},   {Py_tp_dealloc, front_dealloc},
                                    {Py_tp_traverse, front_traverse}, {Py_tp_clear, front_clear},
                                    {Py_tp_methods, front_methods},   {Py_tp_getset, front_getset},
                                    {0, NULL}};
PyType_Spec front_spec = {"aslab._fastpath._core.Front", sizeof(Front), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, front_slots};

/* -- leases */

PyObject *lease_enter(Core *core, PyObject *const *args)
{
    Lease *lease = (Lease *)args[0];
    if (lease->front == NULL)
        return NULL;
    PyObject *buffer = front_hit(core, lease->front);
    if (buffer == NULL)
        return NULL;
    Py_XSETREF(lease->buffer, Py_NewRef(buffer));
    return ready_new(core, buffer);
}

PyObject *lease_exit(Core *core, PyObject *const *args)
{
    Lease *lease = (Lease *)args[0];
    PyObject *buffer = lease->buffer;
    if (buffer == NULL ||
        (Py_TYPE(buffer) != core->handle && Py_TYPE(buffer) != core->seen && Py_TYPE(buffer) != core->managed))
        return NULL;
    lease->buffer = NULL;
    PyObject *done = handle_exit(core, &buffer);
    if (done == NULL && !PyErr_Occurred()) {
        lease->buffer = buffer; /* nobody has run since */
        return NULL;
    }
    Py_DECREF(buffer);
    return done == NULL ? NULL : ready_new(core, done);
}

static int lease_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"alloc", NULL};
    PyObject *alloc;
    Lease *lease = (Lease *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Lease", names, &alloc))
        return -1;
    Py_XSETREF(lease->alloc, Py_NewRef(alloc));
    Py_CLEAR(lease->front);
    return 0;
}

static int lease_traverse(PyObject *self, visitproc visit, void *arg)
{
    Lease *lease = (Lease *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(lease->front);
    Py_VISIT(lease->alloc);
    Py_VISIT(lease->buffer);
    return 0;
}

static int lease_clear(PyObject *self)
{
    Lease *lease = (Lease *)self;
    Py_CLEAR(lease->front);
    Py_CLEAR(lease->alloc);
    Py_CLEAR(lease->buffer);
    return 0;
}

void lease_clear_kept(Core *core)
{
    while (core->n_leases) {
        PyObject_GC_Del(core->leases[--core->n_leases]);
        Py_DECREF(core->lease);
    }
}

static void lease_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Lease *lease = (Lease *)self;
    PyObject_GC_UnTrack(self);
    Py_CLEAR(lease->buffer);
    Core *core = lease->front == NULL || lease->front->magazine == NULL ? NULL : lease->front->magazine->core;
    if (core != NULL && type == core->lease && core->n_leases < KEPT_LEASES && lease->alloc == NULL) {
        core->leases[core->n_leases++] = lease;
        Py_CLEAR(lease->front);
        return;
    }
    lease_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *lease_get_alloc(PyObject *self, void *Py_UNUSED(closure))
{
    Lease *lease = (Lease *)self;
    if (lease->front != NULL && lease->front->magazine != NULL)
        return PyObject_GetAttr((PyObject *)lease->front, lease->front->magazine->core->alloc);
    if (lease->alloc == NULL)
        PyErr_SetString(PyExc_AttributeError, "_alloc");
    return Py_XNewRef(lease->alloc);
}

static PyMethodDef lease_methods[] = {METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
                                      {NULL, NULL, 0, NULL}};
static PyMemberDef lease_members[] = {{"_buffer", T_OBJECT, offsetof(Lease, buffer), 0, NULL},
                                      {NULL, 0, 0, 0, NULL}};
static PyGetSetDef lease_getset[] = {{"_alloc", lease_get_alloc, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot lease_slots[] = {{Py_tp_new, PyType_GenericNew},   {Py_tp_init, lease_init},
                                    {Py_tp_dealloc, lease_dealloc},   {Py_tp_traverse, lease_traverse},
                                    {Py_tp_clear, lease_clear},       {Py_tp_methods, lease_methods},
                                    {Py_tp_members, lease_members},   {Py_tp_getset, lease_getset},
                                    {0, NULL}};
PyType_Spec lease_spec = {"aslab._fastpath._core.Lease", sizeof(Lease), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lease_slots};
